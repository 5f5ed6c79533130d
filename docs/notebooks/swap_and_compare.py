# %% [markdown]
# # Swap and compare
#
# Takes a Transformer encoder of torch, swaps its attention for SummaryMixing, and compares the
# two: how time grows with the length of the input, and what each learns of a small task. A few
# seconds on a laptop's core. [Swap](../swap.md) has the other models that can be changed, and
# SpeechBrain's recipes.

# %%
import time
from functools import partial

import torch
from torch import nn

from speechbrain_summarymixing.lobes.swap import swap_self_attention
from speechbrain_summarymixing.nnet.selective_summary_mixing import SelectiveSummaryMixing
from speechbrain_summarymixing.nnet.summary_mixing import SummaryMixing

D = 64  # d_model


def encoder():
    """Two layers of torch's Transformer."""
    layer = nn.TransformerEncoderLayer(D, 4, 2 * D, dropout=0.0, batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


# %% [markdown]
# ## Swap
#
# `swap_self_attention` changes the model in place and tells how many layers it found. What makes
# the mixer is any callable: here the published form, and the one that this project's systems have
# by default, whose frames look at neighbours and select among summaries.

# %%
MIXERS = {
    "attention": None,
    "SummaryMixing": partial(SummaryMixing, D, dropout=0.0),
    "SelectiveSummaryMixing": partial(SelectiveSummaryMixing, D, nhead=4, dropout=0.0),
}


def model_with(name):
    """The encoder with one of the mixers, the same start but for these."""
    torch.manual_seed(0)
    model = encoder()
    if MIXERS[name] is not None:
        assert swap_self_attention(model, MIXERS[name]) == 2
    return model


for name in MIXERS:
    parameters = sum(p.numel() for p in model_with(name).parameters())
    print(f"{name:24}{parameters:8,} parameters")

# %% [markdown]
# ## Time
#
# Attention's time grows with the square of the length, the mixers' with the length: from some
# length on a doubling costs them twice, and attention four times. Printed are the lesser of two
# times; on a machine with other work they jump.

# %%
FRAMES = (250, 500, 1000, 2000)
print(f"{'frames':24}" + "".join(f"{frames:>9}" for frames in FRAMES))
for name in MIXERS:
    model, row = model_with(name).eval(), []
    for frames in FRAMES:
        x, times = torch.randn(1, frames, D), []
        with torch.no_grad():
            for _ in range(2):
                start = time.perf_counter()
                model(x)
                times.append(time.perf_counter() - start)
        row.append(1000 * min(times))
    print(f"{name:24}" + "".join(f"{ms:7.1f} ms" for ms in row))

# %% [markdown]
# On a core of two, beside much other work,
#
#     frames                        250      500     1000     2000
#     attention                   2.3 ms   45.7 ms  286.7 ms 1344.2 ms
#     SummaryMixing              33.9 ms    3.3 ms   32.5 ms   43.1 ms
#     SelectiveSummaryMixing     60.9 ms   79.4 ms  119.6 ms  206.8 ms
#
# `summarymixing benchmark systems` measures the same of whole encoders, with memory, in turns:
# [Systems](../systems.md#encoders).
#
# ## What they learn
#
# Which frames are above their utterance's own mean? All frames have to be looked at for it, and
# nothing but their mean is needed. [Theory](../theory.md) has a task of the other kind, which
# asks for single frames of the past, and what the three do there.


# %%
def batch(size, frames=50):
    """Utterances (B, T, 1) around levels of their own, and whether frames are above their mean."""
    x = torch.randn(size, frames, 1) + 2 * torch.randn(size, 1, 1)
    return x, (x > x.mean(1, keepdim=True)).float()


def right_answers(name, steps=120):
    """The share of right answers on new utterances, after so many steps."""
    model = nn.Sequential(nn.Linear(1, D), model_with(name), nn.Linear(D, 1))
    optimizer = torch.optim.Adam(model.parameters(), 0.003)
    for _ in range(steps):
        x, above = batch(32)
        loss = nn.functional.binary_cross_entropy_with_logits(model(x), above)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        x, above = batch(500)
        return ((model.eval()(x) > 0) == (above > 0)).float().mean().item()


found = {name: right_answers(name) for name in MIXERS}
for name, share in found.items():
    print(f"{name:24}{100 * share:6.1f}% right")
assert min(found.values()) > 0.9  # chance is 50%

# %% [markdown]
#     attention                 99.0% right
#     SummaryMixing             98.8% right
#     SelectiveSummaryMixing    98.9% right
#
# ## Compare on speech
#
# A claim about speech takes equal sizes, equal steps, several seeds and an interval. One command
# trains and compares:
#
#     summarymixing compare hparams/sumformer.yaml hparams/branchformer_attention.yaml \
#         --seeds 1 2 3 --match-parameters
#
# [Compare](../systems.md#compare) explains it, and [which mixer](../mixers/README.md) has what it
# found.
