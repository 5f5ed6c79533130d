import pytest
import torch

from speechbrain_summarymixing.errors import UserError
from speechbrain_summarymixing.training.schedules import make_schedule

OPTIONS = {"lr": 0.5, "warmup": 10, "total": 100, "cooldown_fraction": 0.4}


def rates(kind, steps):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = make_schedule(kind, **OPTIONS)
    for step in steps:
        schedule(optimizer, step)
        yield optimizer.param_groups[0]["lr"]


def test_noam_is_a_function_of_the_step_alone():
    expected = [0.5 * min(step / 10, (10 / step) ** 0.5) for step in (1, 5, 10, 40, 5)]
    assert list(rates("noam", (1, 5, 10, 40, 5))) == pytest.approx(expected)


def test_cooldown_rises_stays_and_falls_to_nothing():
    assert list(rates("cooldown", (5, 10, 60, 80))) == pytest.approx([0.25, 0.5, 0.5, 0.25])
    assert list(rates("cooldown", (100,))) == pytest.approx([0.0], abs=1e-6)


def test_an_unknown_schedule_is_named():
    with pytest.raises(UserError, match="--schedule is cosine, but must be cooldown or noam"):
        make_schedule("cosine", **OPTIONS)
