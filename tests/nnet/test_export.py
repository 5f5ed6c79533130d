"""One graph for every batch and length: torch.export and torch.compile."""

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch.export import Dim

from speechbrain_summarymixing.nnet.summary_mixing import SummaryMixing

D = 8
FORMS = {
    "standard": {},
    "four heads": {"nhead": 4},
    "lite": {"local_branch": False},
    "fast": {"shared_projection": True},
    "decay": {"decay": 0.9},
}
every_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
with_and_without_padding = pytest.mark.parametrize("masked", [False, True])
SHAPES = [(2, 6), (4, 150), (2, 64), (5, 65)]
WITH_ONE = [(3, 1), (1, 5)]  # which torch.compile takes for shapes of their own


def make(form):
    torch.manual_seed(0)
    return SummaryMixing(D, dropout=0.0, **form)


def inputs(batch, frames, masked):
    lengths = torch.arange(batch)[:, None] + frames // 2 + 1
    padding = torch.arange(frames).expand(batch, frames) >= lengths
    return (torch.randn(batch, frames, D),), {"key_padding_mask": padding} if masked else {}


@every_form
@with_and_without_padding
@pytest.mark.parametrize("strict", [True, False])
def test_an_exported_cell_takes_any_batch_and_length(form, masked, strict):
    cell, (x, masks) = make(form).eval(), inputs(2, 6, masked)
    dynamic = {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}
    shapes = {"query": dynamic, **{name: dynamic for name in masks}}
    program = torch.export.export(cell, x, masks, dynamic_shapes=shapes, strict=strict)
    for batch, frames in SHAPES + WITH_ONE:
        x, masks = inputs(batch, frames, masked)
        torch.testing.assert_close(program.module()(*x, **masks)[0], cell(*x, **masks)[0])


@every_form
@with_and_without_padding
@pytest.mark.parametrize("train", [False, True])
def test_a_compiled_cell_is_one_graph_for_every_length(form, masked, train):
    torch._dynamo.reset()
    cell, graphs = make(form).train(train), CompileCounter()
    compiled = torch.compile(cell, backend=graphs, fullgraph=True, dynamic=True)
    with torch.set_grad_enabled(train):
        for batch, frames in SHAPES:
            (x,), masks = inputs(batch, frames, masked)
            x.requires_grad_(train)
            output, expected = compiled(x, **masks)[0], cell(x, **masks)[0]
            torch.testing.assert_close(output, expected)
            if train:
                gradients = [
                    torch.autograd.grad(y.square().sum(), x)[0] for y in (output, expected)
                ]
                torch.testing.assert_close(*gradients)
    assert graphs.frame_count == 1
