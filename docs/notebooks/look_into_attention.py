# %% [markdown]
# # Look into attention

# %%
print(1)
