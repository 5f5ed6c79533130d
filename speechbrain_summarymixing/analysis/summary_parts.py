"""What the local and the summary part of SummaryMixing contribute, by layer and head.

H is the number of heads, T the number of frames, M the summaries of a head, W its neighbours to
each side.
"""

import torch

from speechbrain_summarymixing.analysis.probe import SOFTMAX, Part
from speechbrain_summarymixing.nnet.selective_summary_mixing import SelectiveSummaryMixing
from speechbrain_summarymixing.nnet.summary_mixing import SummaryMixing

NO_SUMMARIES, NO_NEIGHBOURS = "no summaries", "no neighbours"
NO_SUMMARY, MEAN_SUMMARY, NO_LOCAL = "no summary", "mean summary", "no local part"


class SelectiveParts(Part):
    """`SelectiveSummaryMixing`: the weight of neighbours by distance, and of each summary."""

    cell, changes = SelectiveSummaryMixing, (NO_SUMMARIES, NO_NEIGHBOURS)

    def __init__(self, name, module, probe):
        super().__init__(name, module, probe)
        self.heads, self.summaries = module.nhead, module.summaries
        self.reach = module.neighbours
        if not self.summaries:
            self.changes = ()
        self.columns = ("neighbours", "distance")
        self.columns += tuple(f"summary_{m + 1}" for m in range(self.summaries))
        self.near = self.selected = None  # (H, T, 2 W + 1), (H, T, M)
        self._frames, self._sums, self._counts = None, 0, 0

    @staticmethod
    def matches(module):
        """Whether a module is such a mixer, and none of its subclasses."""
        return type(module) is SelectiveSummaryMixing

    def hooks(self):
        """Yields the handle of a hook by which it knows the number of frames."""
        yield self.module.register_forward_pre_hook(self._begin)

    def _begin(self, module, inputs):
        self._frames = inputs[0].size(1)

    def softmax(self, scores, dtype):
        """Returns the weights of scores (B, H, blocks, block, around + M), some of them hidden."""
        self.probe.ran(self)
        around = scores.size(-1) - self.summaries
        hidden = {NO_SUMMARIES: slice(around, None), NO_NEIGHBOURS: slice(around)}
        for place, heads, name in self.wanted():
            scores[place, heads, ..., hidden[name]] = torch.finfo(scores.dtype).min
        weights = SOFTMAX(scores, -1, dtype=dtype)
        if self.probe.is_recording:
            near, self.selected = (
                part.flatten(1, 2)[:, : self._frames]
                for part in weights[0].split([around, self.summaries], -1)
            )
            row = torch.arange(scores.size(3), device=scores.device)
            first = row + (around - scores.size(3)) // 2 - self.reach
            column = first.unsqueeze(1) + torch.arange(2 * self.reach + 1, device=scores.device)
            inside = (column >= 0) & (column < around)
            column = column.clamp(0, around - 1).repeat(scores.size(2), 1)[: self._frames]
            inside = inside.repeat(scores.size(2), 1)[: self._frames]
            self.near = near.gather(-1, column.expand(len(near), -1, -1)) * inside
        return weights

    def observe(self):
        """Adds what is seen of an utterance to the sums over frames."""
        weights = torch.cat([self.near, self.selected], -1).double()  # (H, T, 2 W + 1 + M)
        time = torch.arange(self._frames, device=weights.device).unsqueeze(1)
        other = time + torch.arange(-self.reach, self.reach + 1, device=weights.device)
        inside = ((other >= 0) & (other < self._frames)).sum(0)
        self._sums = self._sums + weights.sum(1)
        of_summaries = inside.new_full((self.summaries,), self._frames)
        self._counts = self._counts + torch.cat([inside, of_summaries])

    def fit(self):
        """Nothing is to be fitted."""

    def table(self):
        """Returns a dict of `columns` for each head; ``distance`` is that of neighbours seen."""
        width = 2 * self.reach + 1
        weights = self._sums / self._sums.sum(-1, keepdim=True)
        distance = torch.arange(-self.reach, self.reach + 1, device=weights.device).abs()
        near = weights[:, :width].sum(-1)
        columns = [near, (weights[:, :width] * distance).sum(-1) / near, *weights[:, width:].mT]
        rows = zip(*(column.tolist() for column in columns))
        return [{"head": i + 1, **dict(zip(self.columns, row))} for i, row in enumerate(rows)]

    def profile(self):
        """Mean weight (H, 2 W + 1) of frames from -W to W away."""
        width = 2 * self.reach + 1
        return (self._sums[:, :width] / self._counts[:width].clamp(min=1)).cpu()

    def picture(self):
        """Weights of the utterance heard last, by distance and then by summary."""
        return torch.cat([self.near, self.selected], -1).float().cpu()


class SummaryParts(Part):
    """`SummaryMixing`: how large its local part and its summary are, and what they do."""

    cell, changes = SummaryMixing, (NO_SUMMARY, MEAN_SUMMARY, NO_LOCAL)
    columns = ("local", "summary", "share", "variation")

    def __init__(self, name, module, probe):
        super().__init__(name, module, probe)
        self.heads = module.nhead
        if not module.local_dims:
            self.changes = (NO_SUMMARY, MEAN_SUMMARY)
        self.mean = None  # (S,), of the summary over utterances
        self._local, self._summary, self._seen, self._sizes = None, None, [], []

    @staticmethod
    def matches(module):
        """Whether a module is such a cell."""
        return isinstance(module, SummaryMixing)

    def hooks(self):
        """Yields the handles of hooks on what enters the combiner."""
        yield self.module.summary_norm.register_forward_hook(self._at_summary)
        if self.module.local_dims:
            yield self.module.local_norm.register_forward_hook(self._at_local)

    def _at_summary(self, module, inputs, summary):
        """Sees and changes the summary (B, 1 or T, S)."""
        self.probe.ran(self)
        if self.probe.is_recording:
            self._summary = summary[0]
        for place, heads, name in self.wanted():
            if name != NO_LOCAL:
                columns = self._columns(heads, summary.size(-1))
                mean = 0.0 if name == NO_SUMMARY else self.mean[columns].to(summary.dtype)
                summary[place, :, columns] = mean
        return summary

    def _at_local(self, module, inputs, local):
        """Sees and changes the local part (B T, L)."""
        if self.probe.is_recording:
            self._local = local
        local = local.view(self.probe.copies, -1, local.size(-1))
        for place, heads, name in self.wanted():
            if name == NO_LOCAL:
                local[place, :, self._columns(heads, local.size(-1))] = 0.0
        return local.flatten(0, 1)

    def _columns(self, heads, width):
        """Columns of a slice of heads in a vector of all."""
        each = width // self.heads
        return slice(*(None if end is None else end * each for end in (heads.start, heads.stop)))

    def observe(self):
        """Adds the sizes of what the parts give to the combiner's sum; keeps the summary."""
        module, summary = self.module, self._summary
        self._seen.append(summary.mean(0).double())
        if not module.local_dims:
            sizes = [[0.0, self._size(summary, None, heads)] for heads in self._rows()]
        else:
            width = module.local_dims[-1]
            of_local, of_summary = module.combiner.weight.split([width, summary.size(-1)], dim=1)
            sizes = [
                [self._size(self._local, of_local, rows), self._size(summary, of_summary, rows)]
                for rows in self._rows()
            ]
        self._sizes.append(torch.tensor(sizes, dtype=torch.float64))

    def _rows(self):
        """Slices of heads: of all, and of each where there are several."""
        each = [slice(head, head + 1) for head in range(self.heads)]
        return [slice(None), *each] if self.heads > 1 else each

    def _size(self, x, weight, heads):
        """Mean over frames of the norm of what a part (T, width) adds."""
        columns = self._columns(heads, x.size(-1))
        added = x[:, columns] if weight is None else x[:, columns] @ weight[:, columns].mT
        return float(added.norm(dim=-1).mean())

    def fit(self):
        """Takes the mean over utterances of their summaries."""
        self.mean = torch.stack(self._seen).mean(0)

    def table(self):
        """Returns a dict of `columns` for all heads together, and for each of several.

        ``local`` and ``summary`` are the norms of what they add before the activation, ``share``
        the summary's of both, ``variation`` the distance of summaries to their mean over
        utterances, over their size (both root mean square).
        """
        sizes = torch.stack(self._sizes).mean(0).tolist()
        seen, table = torch.stack(self._seen), []
        for heads, (local, summary) in zip(self._rows(), sizes):
            own = seen[:, self._columns(heads, seen.size(-1))]
            varied = (own - own.mean(0)).square().sum() / own.square().sum()
            values = (local, summary, summary / (local + summary), float(varied.sqrt()))
            head = None if heads.start is None else heads.start + 1
            table.append({"head": head, **dict(zip(self.columns, values))})
        return table

    def profile(self):
        """Returns None: a mean has no distances."""

    def picture(self):
        """Returns None: there are no rows."""
