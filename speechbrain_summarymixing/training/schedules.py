"""Learning rates that depend on nothing but the number of the optimiser's step."""

from speechbrain.nnet.schedulers import NoamScheduler, WarmCoolDecayLRSchedule

from speechbrain_summarymixing.errors import UserError


def make_schedule(kind, *, lr, warmup, total, cooldown_fraction):
    """Makes a learning rate schedule of SpeechBrain's.

    Arguments
    ---------
    kind : str
        "cooldown" rises, stays and falls linearly to 0; "noam" rises linearly and falls by the
        root of the step (arXiv 1706.03762), with its peak of lr after the warm-up.
    lr : float
        The highest learning rate.
    warmup, total : int
        Optimiser steps of the warm-up and of the whole training.
    cooldown_fraction : float
        Part of the steps in which "cooldown" falls.

    Returns
    -------
    callable
        Called with the optimizer and the number of steps done, it sets the learning rate.

    Raises
    ------
    UserError
        If there is no such schedule.
    """
    if kind == "cooldown":
        cooldown = max(1, round(cooldown_fraction * total))
        return WarmCoolDecayLRSchedule(
            lr=lr, warmup=warmup, decay_factor=1.0, total_steps=total, cooldown=cooldown
        )
    if kind == "noam":
        scheduler = NoamScheduler(lr, max(1, warmup))

        def noam(optimizer, steps):
            scheduler.n_steps = max(0, steps - 1)  # which SpeechBrain's would count itself
            scheduler(optimizer)

        return noam
    raise UserError(f"--schedule is {kind}, but must be cooldown or noam")
