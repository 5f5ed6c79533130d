"""An exponential moving average of weights, to validate, test and export in their place."""

from contextlib import contextmanager

import torch
from speechbrain.utils.checkpoints import (
    mark_as_loader,
    mark_as_saver,
    register_checkpoint_hooks,
)
from torch.optim.swa_utils import get_ema_multi_avg_fn

from speechbrain_summarymixing.errors import UserError


@register_checkpoint_hooks
class AveragedWeights:
    """The exponential moving average of a model's weights, in float32.

    A checkpointer's recoverable, of which a checkpoint has a state dict of the model. torch's
    ``AveragedModel`` would copy buffers too, which here may grow.

    Arguments
    ---------
    model : torch.nn.Module
        On its device.
    decay : float
        Of the average in a step. In the first steps it is (1 + step) / (10 + step), where that is
        lower, so that the random start is soon forgotten.

    Raises
    ------
    UserError
        If decay is not above 0 and below 1.
    """

    def __init__(self, model, decay):
        if not 0 < decay < 1:
            raise UserError(
                f"--ema is {decay}, but must be above 0 and below 1, such as 0.999, or 0: none"
            )
        self.model, self.decay = model, decay
        self.weights = [p.detach().to(torch.float32, copy=True) for p in model.parameters()]

    @torch.no_grad()
    def update(self, step):
        """Takes in the weights after an optimiser step, before which there were ``step``."""
        average = get_ema_multi_avg_fn(min(self.decay, (1 + step) / (10 + step)))
        average(self.weights, [p.detach().float() for p in self.model.parameters()], None)

    @contextmanager
    def in_place(self):
        """Lets the model have the average in place of its weights."""
        parameters = list(self.model.parameters())
        with torch.no_grad():
            own = [p.clone() for p in parameters]
            torch._foreach_copy_(parameters, self.weights)
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(parameters, own)

    def state_dict(self):
        """Returns the model's state dict with the average in place of its weights."""
        of = dict(zip(self.model.parameters(), self.weights))
        named = self.model.named_parameters(remove_duplicate=False)
        return {**self.model.state_dict(), **{name: of[p] for name, p in named}}

    @mark_as_saver
    def _save(self, path):
        torch.save(self.state_dict(), path)

    @mark_as_loader
    def _load(self, path, end_of_epoch):
        saved = torch.load(path, map_location="cpu", weights_only=True)
        names = (name for name, _ in self.model.named_parameters())
        with torch.no_grad():
            for average, name in zip(self.weights, names, strict=True):
                average.copy_(saved[name])
