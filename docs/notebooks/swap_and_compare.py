# %% [markdown]
# # Swap and compare

# %%
print(1)
