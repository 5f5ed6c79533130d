"""The moving average of weights, by itself; test_training_options.py has it in runs."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from speechbrain.utils.checkpoints import Checkpointer

from speechbrain_summarymixing.errors import UserError
from speechbrain_summarymixing.training.brain import ExperimentBrain
from speechbrain_summarymixing.training.ema import AveragedWeights


class Tied(torch.nn.Module):
    """One weight by two names, and a buffer that grows, as that of sine positions."""

    def __init__(self):
        super().__init__()
        self.one, self.other = torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)
        self.other.weight = self.one.weight
        self.register_buffer("table", torch.zeros(2))


def test_the_average_is_that_of_its_definition_and_goes_on_from_a_checkpoint(tmp_path):
    torch.manual_seed(0)
    model = Tied()
    average = AveragedWeights(model, 0.9)
    expected = {name: p.detach().double() for name, p in model.named_parameters()}
    checkpointer = Checkpointer(tmp_path, {"model": model, "ema": average})
    for step in range(100):
        for parameter in model.parameters():
            parameter.data += torch.randn_like(parameter)
        model.table = torch.rand(step + 1)
        average.update(step)
        decay = min(0.9, (1 + step) / (10 + step))
        for name, parameter in model.named_parameters():
            expected[name] = decay * expected[name] + (1 - decay) * parameter.detach().double()
        if step == 50:
            checkpointer.save_checkpoint()
            middle = [weight.clone() for weight in average.weights]
    state = average.state_dict()
    assert state.keys() == model.state_dict().keys()
    for name, value in expected.items():
        torch.testing.assert_close(state[name].double(), value, rtol=1e-5, atol=1e-5)
    assert state["other.weight"].equal(state["one.weight"])
    own = {name: value.clone() for name, value in model.state_dict().items()}
    with average.in_place():
        assert model.one.weight.equal(state["one.weight"])
    assert all(value.equal(own[name]) for name, value in model.state_dict().items())
    model.table = torch.zeros(51)
    checkpointer.recover_if_possible()
    assert all(a.equal(b) for a, b in zip(average.weights, middle))


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_a_decay_that_is_none_is_told(decay):
    with pytest.raises(UserError, match=f"--ema is {decay}, but must be above 0 and below 1"):
        AveragedWeights(Tied(), decay)


def test_the_average_takes_in_no_step_that_was_skipped():
    """SpeechBrain's --skip_nonfinite_grads leaves no gradients, fp16's scaler takes no step."""
    weight, taken = torch.nn.Parameter(torch.ones(1)), []
    brain = SimpleNamespace(_ema=SimpleNamespace(update=taken.append), optimizer_step=7)
    optimizer = torch.optim.AdamW([weight])
    optimizer.register_step_post_hook(partial(ExperimentBrain._take_in_weights, brain))
    optimizer.step()
    scaler = torch.amp.GradScaler("cpu")
    for gradient in (float("inf"), 1.0):
        assert taken == []
        weight.grad = torch.full((1,), gradient)
        scaler.scale(weight.sum())
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
    assert taken == [7]
