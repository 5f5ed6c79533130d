"""Time of a SummaryMixing cell over that of its matrix products, or of the plain cell."""

import statistics
from functools import partial

import torch

from speechbrain_summarymixing.analysis.measuring import seconds_of
from speechbrain_summarymixing.errors import UserError
from speechbrain_summarymixing.nnet.selective_summary_mixing import SelectiveSummaryMixing
from speechbrain_summarymixing.nnet.summaries import CAUSAL, Window
from speechbrain_summarymixing.nnet.summary_mixing import SummaryMixing

COLUMNS = ("form", "nhead", "frames", "cell_ms", "over", "over_ms", "ratio", "repetitions")
FORMS = {  # what makes the cell, and its window
    "plain": (SummaryMixing, None),
    "causal": (SummaryMixing, CAUSAL),
    "causal-limited": (SummaryMixing, Window(left_chunks=100)),
    "chunks": (SummaryMixing, Window(chunk_frames=16, left_chunks=4)),
    "decay": (partial(SummaryMixing, decay=0.995), None),
    "selective": (SelectiveSummaryMixing, None),
}


def cell_cost(
    *,
    form="plain",
    nhead=1,
    frames=1000,
    d_model=512,
    train=False,
    compiled=False,
    device="cpu",
    repetitions=30,
):
    """Times a cell and what it is compared with alternately, and compares the medians.

    Arguments
    ---------
    form : str
        One of `FORMS`. The plain cell is compared with its matrix products, others with it;
        "selective" has its default neighbours and summaries.
    nhead, d_model : int
        Of the standard cell.
    frames : int
        Length T of the one utterance.
    train : bool
        A step forward and backward, for which the products count three times; else inference.
    compiled : bool
        Cells go through ``torch.compile``.
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
        If a number is not positive, or the cell cannot be made of them.
    """
    numbers = {"nhead": nhead, "frames": frames, "d_model": d_model, "repetitions": repetitions}
    for name, value in numbers.items():
        if value < 1:
            raise UserError(f"{name} is {value}, but must be 1 or more")
    torch.manual_seed(0)
    torch.compiler.reset()  # each row has graphs of its own
    x = torch.randn(1, frames, d_model, device=device, requires_grad=train)

    def cell_and_step(form):
        make, window = FORMS[form]
        try:
            cell = make(d_model, nhead=nhead, dropout=0.0).to(device).train(train)
        except ValueError as error:
            raise UserError(f"{error}: change --nhead or --d-model") from error
        forward = torch.compile(cell, fullgraph=True) if compiled else cell
        direction = torch.ones(1, frames, d_model, device=device)

        def step():
            output = forward(x, window=window)[0]
            if train:
                output.backward(direction)
                x.grad = None
                cell.zero_grad()

        return cell, step

    plain, other = cell_and_step("plain")
    if form == "plain":
        step, over = other, "3 x products" if train else "products"
        other, times_other = bare_products(plain, x.detach()), 3 if train else 1
    else:
        step, over, times_other = cell_and_step(form)[1], "plain cell", 1
    with torch.set_grad_enabled(train):
        for _ in range(3):
            step(), other()
        times = [(seconds_of(step, device), seconds_of(other, device)) for _ in range(repetitions)]
    seconds, other_seconds = map(statistics.median, zip(*times))
    other_seconds *= times_other
    return {
        "form": form,
        "nhead": nhead,
        "frames": frames,
        "cell_ms": 1e3 * seconds,
        "over": over,
        "over_ms": 1e3 * other_seconds,
        "ratio": seconds / other_seconds,
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
