"""What a mean can and cannot compute: two tasks on which attention and means are trained.

    python examples/recall.py            # about 10 minutes on a laptop's core
    python examples/recall.py --keys 4 16 --seeds 1 --steps 600
    python examples/recall.py --output FOLDER    # recall.csv and recall.png too

recall   An utterance says a bit for each of N keys, then asks for all of them in another order. A
         mean that is the same for every frame holds N bits or fails; attention looks them up.
level    Which frames are above the utterance's own mean? Nothing but a mean is needed.

docs/theory.md has the propositions and the measured table.
"""

import argparse
import csv
import math
import statistics
from pathlib import Path

import matplotlib
import torch
from matplotlib import pyplot
from torch import nn

from speechbrain_summarymixing.nnet.selective_summary_mixing import SelectiveSummaryMixing
from speechbrain_summarymixing.nnet.summary_mixing import SummaryMixing

D = 32
RECALL = "recall, {} keys"


class Recall:
    """N frames (key, bit), then N frames that ask for the keys' bits, in another order."""

    def __init__(self, keys):
        self.keys, self.inputs = keys, keys + 3

    def batch(self, size, draw):
        """Frames (B, 2 N, N + 3), and what is asked for (B, 2 N), NaN where nothing is."""
        order = torch.rand(size, 2, self.keys, generator=draw).argsort(-1)
        bits = torch.randint(2, (size, self.keys), generator=draw)  # of each key
        said, asked = order.unbind(1)
        one_hot = nn.functional.one_hot(order, self.keys).flatten(1, 2)
        kind = torch.cat([bits.gather(1, said), torch.full_like(said, 2)], 1)
        frames = torch.cat([one_hot, nn.functional.one_hot(kind, 3)], -1).float()
        nothing = torch.full((size, self.keys), math.nan)
        return frames, torch.cat([nothing, bits.gather(1, asked).float()], 1)


class Level:
    """Frames whose values lie around a level of the utterance's own."""

    inputs = 1

    def __init__(self, frames):
        self.frames = frames

    def batch(self, size, draw):
        """Frames (B, T, 1), and whether each is above the mean (B, T)."""
        noise = torch.randn(size, self.frames, 1, generator=draw)
        x = noise + 2 * torch.randn(size, 1, 1, generator=draw)
        return x, (x > x.mean(1, keepdim=True)).float().squeeze(-1)


class Attention(nn.Module):
    """One head of softmax attention without positions."""

    def __init__(self, d_model):
        super().__init__()
        self.projection = nn.Linear(d_model, 3 * d_model)
        self.output = nn.Linear(d_model, d_model)

    def rows_and_values(self, x):
        """Rows (B, T, T) and values (B, T, D)."""
        q, k, v = self.projection(x).chunk(3, -1)
        return (q @ k.mT / math.sqrt(k.shape[-1])).softmax(-1), v

    def forward(self, x):
        """Mixes x (B, T, D)."""
        rows, values = self.rows_and_values(x)
        return self.output(rows @ values), None


def published(d_model):
    """One mean that is the same for every frame."""
    return SummaryMixing(d_model, dropout=0.0)


def selective(d_model):
    """Four means among which each frame selects, and a neighbour to each side."""
    return SelectiveSummaryMixing(d_model, nhead=1, neighbours=1, summaries=4, dropout=0.0)


class NoMixer(nn.Module):
    """Each frame by itself."""

    def __init__(self, d_model):
        super().__init__()

    def forward(self, x):
        """Mixes nothing."""
        return torch.zeros_like(x), None


MIXERS = {
    "attention": Attention,
    "one mean": published,
    "selected means": selective,
    "none": NoMixer,
}


class Model(nn.Module):
    """Frames, one mixer between residual layers of frames alone, and a logit for each frame."""

    def __init__(self, make_mixer, inputs):
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(inputs, D), nn.GELU(), nn.Linear(D, D))
        self.mixer = make_mixer(D)
        self.answer = nn.Sequential(nn.Linear(2 * D, 4 * D), nn.GELU(), nn.Linear(4 * D, 1))

    def forward(self, frames):
        """Frames (B, T, inputs) to logits (B, T)."""
        x = self.embed(frames)
        return self.answer(torch.cat([x, self.mixer(x)[0]], -1)).squeeze(-1)


def train(make_mixer, task, *, steps, seed, lr=3e-3):
    """Trains a model on a task; the seed decides its weights and the data."""
    torch.manual_seed(seed)
    model, draw = Model(make_mixer, task.inputs), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
    for _ in range(steps):
        frames, wanted = task.batch(64, draw)
        asked = ~wanted.isnan()
        logits = model(frames)[asked]
        loss = nn.functional.binary_cross_entropy_with_logits(logits, wanted[asked])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


@torch.no_grad()
def accuracy(model, task):
    """Share of right answers on utterances that were not trained on."""
    frames, wanted = task.batch(500, torch.Generator().manual_seed(10**6))
    asked = ~wanted.isnan()
    return ((model(frames)[asked] > 0) == wanted[asked].bool()).float().mean().item()


def plot(keys, rows, file):
    """Draws the right answers of each mixer, and their mean over seeds, by the number of keys."""
    matplotlib.use("Agg")
    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for color, name in enumerate(MIXERS):
        found = [
            [right for task, mixer, _, right in rows if (task, mixer) == (RECALL.format(n), name)]
            for n in keys
        ]
        axes.plot(keys, list(map(statistics.fmean, found)), color=f"C{color}", label=name)
        axes.plot(keys, found, "o", color=f"C{color}", alpha=0.5)
    axes.set(xscale="log", xlabel="keys", ylabel="right answers, %")
    axes.set_xticks(keys, list(map(str, keys)))
    axes.minorticks_off()
    axes.legend()
    figure.savefig(file, dpi=100)
    pyplot.close(figure)


def main():
    """Trains every mixer on both tasks and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keys", type=int, nargs="+", default=[2, 4, 8, 16])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--output", type=Path, help="folder for recall.csv and recall.png")
    arguments = parser.parse_args()
    tasks = {RECALL.format(keys): Recall(keys) for keys in arguments.keys}
    tasks["level, 50 frames"] = Level(50)
    rows = []
    print("| task |", " | ".join(MIXERS), "|\n|---|" + "---|" * len(MIXERS))
    for name, task in tasks.items():
        cells = []
        for mixer, make_mixer in MIXERS.items():
            found = [
                100 * accuracy(train(make_mixer, task, steps=arguments.steps, seed=seed), task)
                for seed in arguments.seeds
            ]
            rows += [(name, mixer, seed, right) for seed, right in zip(arguments.seeds, found)]
            cells.append(f"{statistics.fmean(found):.1f} ({min(found):.1f} to {max(found):.1f})")
        print(f"| {name} |", " | ".join(cells), "|", flush=True)
    if arguments.output is not None:
        arguments.output.mkdir(parents=True, exist_ok=True)
        with open(arguments.output / "recall.csv", "w", newline="") as file:
            csv.writer(file).writerows([("task", "mixer", "seed", "right"), *rows])
        plot(arguments.keys, rows, arguments.output / "recall.png")


if __name__ == "__main__":
    main()
