"""Time of a SummaryMixing cell over the time of its matrix products alone."""

import statistics

import torch

from speechbrain_summarymixing.analysis.measuring import seconds_of
from speechbrain_summarymixing.errors import UserError
from speechbrain_summarymixing.nnet.summary_mixing import SummaryMixing

COLUMNS = ("nhead", "frames", "cell_ms", "products_ms", "ratio", "repetitions")


def cell_cost(
    *, nhead=1, frames=1000, d_model=512, train=False, compiled=False, device="cpu", repetitions=30
):
    """Times a cell and its products alternately, and compares the medians.

    Arguments
    ---------
    nhead, d_model : int
        Of the standard cell.
    frames : int
        Length T of the one utterance.
    train : bool
        A step forward and backward, over three times the products; else inference.
    compiled : bool
        The cell goes through ``torch.compile``.
    device : str
    repetitions : int
        Of each of the two.

    Returns
    -------
    dict
        With the `COLUMNS`; times in milliseconds.

    Raises
    ------
    UserError
        If frames or repetitions is not positive.
    """
    for name, value in (("frames", frames), ("repetitions", repetitions)):
        if value < 1:
            raise UserError(f"{name} is {value}, but must be 1 or more")
    torch.manual_seed(0)
    cell = SummaryMixing(d_model, nhead=nhead, dropout=0.0).to(device).train(train)
    x = torch.randn(1, frames, d_model, device=device, requires_grad=train)
    products = bare_products(cell, x.detach())
    forward = torch.compile(cell) if compiled else cell

    def step():
        output = forward(x)[0]
        if train:
            output.backward(torch.ones_like(output))

    with torch.set_grad_enabled(train):
        for _ in range(3):
            step(), products()
        times = [
            (seconds_of(step, device), seconds_of(products, device)) for _ in range(repetitions)
        ]
    cell_seconds, product_seconds = map(statistics.median, zip(*times))
    return {
        "nhead": nhead,
        "frames": frames,
        "cell_ms": 1e3 * cell_seconds,
        "products_ms": 1e3 * product_seconds,
        "ratio": cell_seconds / product_seconds / (3 if train else 1),
        "repetitions": repetitions,
    }


def bare_products(cell, x):
    """Returns a function that computes the matrix products of a cell's inference, nothing else.

    Arguments
    ---------
    cell : SummaryMixing
        With a local branch.
    x : torch.Tensor
        (B, T, D).
    """
    rows = x.size(0) * x.size(1)
    layers = [layer.weights.detach() for layer in (*cell.local_layers, *cell.summary_layers)]
    weights = [cell.first.weights.detach(), *layers]
    weights = [w[0] if cell.nhead == 1 else w for w in weights]
    inputs = [x.new_ones(*w.shape[:-2], rows, w.size(-2)) for w in weights]
    inputs.append(x.new_ones(rows, cell.local_dims[-1]))
    weights.append(cell.combiner.weight.detach()[:, : cell.local_dims[-1]].T)

    def products():
        with torch.no_grad():
            for one, other in zip(inputs, weights):
                torch.matmul(one, other)

    return products
