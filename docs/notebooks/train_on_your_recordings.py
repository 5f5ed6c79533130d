# %% [markdown]
# # Train on your recordings

# %%
print(1)
