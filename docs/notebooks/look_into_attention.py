# %% [markdown]
# # Look into attention
#
# What does a model's mixer look at, and what would a mean in its place cost? First in the trained
# model `examples/sumformer-mini`, then in an attention that is trained here in a few seconds,
# beside the bounds of [theory](../theory.md). `summarymixing analyse` does it for whole models
# and many utterances ([analysis](../analysis.md)); here are its parts by hand.

# %%
from pathlib import Path

import matplotlib
import torch
from torch import nn

import speechbrain_summarymixing
from speechbrain_summarymixing.analysis import bounds
from speechbrain_summarymixing.analysis.attention_rows import AttentionRows, diagonality
from speechbrain_summarymixing.analysis.probe import Change, Probe
from speechbrain_summarymixing.analysis.subjects import load_subject
from speechbrain_summarymixing.analysis.summary_parts import SelectiveParts
from speechbrain_summarymixing.audio import read_audio

matplotlib.use("Agg")  # leave out in a notebook, which shows pictures
import matplotlib.pyplot as plt

EXAMPLE = Path(speechbrain_summarymixing.__file__).parents[1] / "examples/sumformer-mini"

# %% [markdown]
# ## A trained model
#
# The probe stands in the place of the softmax of each mixer. While it records, a part keeps the
# weights of one utterance: those of the neighbours by their distance, and those of the summaries.

# %%
subject = load_subject(EXAMPLE, "cpu")
waveform = read_audio(str(EXAMPLE / "code.flac"), 16000)
with torch.no_grad(), Probe(subject.module, [SelectiveParts]) as probe:
    with probe.recording():
        own = subject.encode(waveform)
    print("layer: weight of the summaries, by head")
    for part in probe.parts:
        weights = part.selected.sum(-1).mean(-1)  # (H,), of all summaries, mean over frames
        print(f"{part.layer + 1:5}: " + "  ".join(f"{weight:4.0%}" for weight in weights.tolist()))
    rows = probe.parts[2].picture()  # (H, T, neighbours and summaries)

    # The same utterance without summaries, and without neighbours, in all layers at once
    without = {}
    for name in SelectiveParts.changes:
        with probe.changing([Change(name)]):
            encoded = subject.encode(waveform)
        without[name] = ((encoded - own).norm() / own.norm()).item()
        print(f"{name:14} the output moves by {without[name]:.2f}: {subject.words(encoded)[0]}")
print(f"{'as it is':14} {subject.words(own)[0]}")
assert without["no neighbours"] > without["no summaries"]

# %% [markdown]
# This prints
#
#     layer: weight of the summaries, by head
#         1:  99%   75%   76%    0%
#         2:   0%    0%    0%   53%
#         3:   0%   11%   97%    0%
#         4:   0%    0%    1%    6%
#         5:   0%    3%   86%    5%
#         6:   1%    0%   11%    2%
#     no summaries   the output moves by 0.10: THE CODE IS SEVEN ZERO FOUR NINE EIGHT
#     no neighbours  the output moves by 0.42: THE CODE IS SEVEN ZERO FOUR NINE EIGHT
#     as it is       THE CODE IS SEVEN ZERO FOUR NINE EIGHT
#
# The third layer's four heads, a line for each frame: left the neighbours from 1.28 s before to
# 1.28 s after, at the right edge the summaries.

# %%
figure, panels = plt.subplots(1, len(rows), figsize=(12, 3), layout="constrained")
for head, (axes, weights) in enumerate(zip(panels, rows)):
    axes.imshow(weights.numpy(), aspect="auto", vmax=float(weights.quantile(0.995)))
    axes.set(title=f"head {head + 1}", xlabel="neighbours | summaries", ylabel="frame")

# %% [markdown]
# ![Weights of the third layer's heads](../analysis/sumformer-mini/rows_03.png)
#
# ## An attention, and the mean in its place
#
# One head learns which frames are above their utterance's mean, for which a mean is all that is
# needed. Do its rows become that mean?

# %%
D = 32
torch.manual_seed(0)
attention = nn.MultiheadAttention(D, 1, batch_first=True)
enter, leave = nn.Linear(1, D), nn.Sequential(nn.Linear(2 * D, D), nn.GELU(), nn.Linear(D, 1))


def answer(x):
    """Scores (B, T, 1) of frames x (B, T, 1)."""
    h = enter(x)
    mixed, _ = attention(h, h, h, need_weights=False)
    return leave(torch.cat([h, mixed], -1))


def batch(size, frames=50):
    """Utterances around a level of their own, and whether each frame is above the mean."""
    x = torch.randn(size, frames, 1) + 2 * torch.randn(size, 1, 1)
    return x, (x > x.mean(1, keepdim=True)).float()


modules = (attention, enter, leave)
optimizer = torch.optim.Adam([p for module in modules for p in module.parameters()], 0.003)
for _ in range(300):
    x, above = batch(32)
    loss = nn.functional.binary_cross_entropy_with_logits(answer(x), above)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
with torch.no_grad():
    x, above = batch(500)
    right = ((answer(x) > 0) == (above > 0)).float().mean().item()
print(f"{right:.1%} right")
assert right > 0.9

# %% [markdown]
# The probe knows torch's attention, SpeechBrain's and that of transformers' encoders.

# %%
with torch.no_grad(), Probe(attention.eval(), [AttentionRows]) as probe:
    with probe.recording():
        h = enter(x[:1])
        attention(h, h, h)
    (part,) = probe.parts
    rows, values = part.rows, part.values  # (1, T, T), (1, T, D)

frames = rows.shape[-1]
uniform = torch.full((1, 1, frames), 1 / frames)
mean_row = bounds.mean_row(rows)
entropy = bounds.entropy(rows) / torch.tensor(frames).log()
print(f"entropy over that of a mean   {entropy.mean():.2f}")
print(f"diagonality (1/2: a mean)     {diagonality(rows).item():.2f}")
print(f"weight that lies elsewhere    {bounds.total_variation(rows, uniform).mean():.2f}")

# %% [markdown]
#     entropy over that of a mean   1.00
#     diagonality (1/2: a mean)     0.55
#     weight that lies elsewhere    0.01
#
# They do: the entropy is nearly that of a mean, and little weight lies elsewhere. How far is the
# head's output from that of the uniform mean, and what do the propositions say that it is at
# most? Each is true, and how loose it is depends on the values: rows that differ do not matter
# where values do not.

# %%
errors = {
    "uniform mean, measured": bounds.replacement_errors(rows, uniform, values),
    "proposition 1 (spread)": bounds.spread_bound(rows, uniform, values),
    "proposition 2 (entropy)": bounds.entropy_bound(rows, values),
    "proposition 3 (variance)": bounds.covariance_bound(rows, uniform, values),
    "mean row, measured": bounds.replacement_errors(rows, mean_row, values),
}
size = (rows @ values).norm(dim=-1).mean()
for name, error in errors.items():
    print(f"{name:28}{(error.mean() / size).item():6.2f} of the output")
measured = errors["uniform mean, measured"]
for name, error in errors.items():
    if name.startswith("proposition"):
        assert (measured <= error + 1e-5).all()

# %% [markdown]
#     uniform mean, measured        0.01 of the output
#     proposition 1 (spread)        0.02 of the output
#     proposition 2 (entropy)       0.02 of the output
#     proposition 3 (variance)      0.01 of the output
#     mean row, measured            0.00 of the output
#
# The mean row is the best that one mean for all frames can be (proposition 4); what remains is
# what the head says differently to different frames.
# [Theory](../theory.md#what-a-mean-cannot-compute) has tasks in which that is all that counts.
