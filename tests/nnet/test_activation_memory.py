"""What a training step keeps for backward, beside the equations written with layers."""

import pytest
import torch
from torch import nn

from speechbrain_summarymixing.nnet.summary_mixing import SummaryMixing

D = 32


class Literal(nn.Module):
    """f, s, the mean, its repetition over time, the concatenation and c, with a cell's weights."""

    def __init__(self, cell):
        super().__init__()
        width = cell.local_dims[0] // cell.nhead
        first = [(cell.first.weights[..., :width], cell.first.biases[:, :width])]
        self.f = nn.Sequential(*layers(first, cell.local_layers))
        first = [(cell.first.weights[..., width:], cell.first.biases[:, width:])]
        self.s = nn.Sequential(*layers(first, cell.summary_layers))
        self.local_norm, self.summary_norm = cell.local_norm, cell.summary_norm
        self.c = nn.Sequential(cell.dropout, cell.combiner, nn.GELU())

    def forward(self, x):
        s_bar = self.summary_norm(self.s(x).mean(1, keepdim=True)).repeat(1, x.size(1), 1)
        return self.c(torch.cat([self.local_norm(self.f(x)), s_bar], -1))


class Heads(nn.Module):
    """A linear layer for each of H groups of features."""

    def __init__(self, weights, biases):
        super().__init__()
        self.linears = nn.ModuleList(nn.Linear(*weight.shape) for weight in weights)
        for linear, weight, bias in zip(self.linears, weights, biases):
            linear.weight.data, linear.bias.data = weight.data.T.clone(), bias.data.clone()

    def forward(self, x):
        if len(self.linears) == 1:
            return self.linears[0](x)
        groups = x.chunk(len(self.linears), -1)
        return torch.cat([linear(group) for linear, group in zip(self.linears, groups)], -1)


def layers(first, later):
    for weights, biases in first + [(layer.weights, layer.biases) for layer in later]:
        yield from (Heads(weights, biases), nn.GELU())


def bytes_for_backward(module, x):
    """Bytes that are saved, each storage once, parameters not counted."""
    parameters = {p.untyped_storage().data_ptr() for p in module.parameters()}
    saved = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = module(x)  # alive until the end, or an address could come twice
    del output
    return sum(saved.values())


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("nhead", [1, 4])
def test_at_most_three_quarters_of_the_equations_written_with_layers(nhead, dropout):
    torch.manual_seed(0)
    cell = SummaryMixing(D, nhead=nhead, dropout=dropout)
    for parameter in cell.parameters():  # biases and norms away from their special values
        nn.init.normal_(parameter, std=0.5)
    literal, x = Literal(cell), torch.randn(4, 500, D, requires_grad=True)
    ours = bytes_for_backward(cell, x)
    theirs = bytes_for_backward(literal, x)
    assert 0 < ours <= 0.75 * theirs
    torch.testing.assert_close(cell.eval()(x)[0], literal.eval()(x), atol=1e-5, rtol=1e-4)
