"""What a run will do, told before it begins."""

import torch

from speechbrain_summarymixing.lobes.mixers import mixer_name
from speechbrain_summarymixing.processes import number_of_processes

CHECK = "-check"  # what the folder's name of a rehearsal ends in


def lines(brain):
    """Returns lines that tell a run, once its schedule is made and its checkpoint is loaded.

    Arguments
    ---------
    brain : ExperimentBrain

    Returns
    -------
    list of str
    """
    hparams, processes = brain.hparams, number_of_processes()
    batches = brain.grad_accumulation_factor * processes
    rows = {
        "system": f"{brain.system}{_mixer(hparams)}, {_millions(hparams.model)} M parameters",
        "trains on": brain.amounts["train"],
        "validates on": brain.amounts["valid"],
        "steps": f"{hparams.number_of_epochs} epochs of {brain.epoch_steps}"
        + (f", {brain.optimizer_step_limit} at most" if brain.optimizer_step_limit else ""),
        "batch": f"{brain.batch_option} {getattr(hparams, brain.batch_option)}, {batches} a step",
        "learning rate": f"{hparams.lr:g} at most, schedule {hparams.schedule}, "
        f"{hparams.warmup_steps} steps of warm-up",
        "device": f"{brain.device}, {brain.precision}, {torch.get_num_threads()} threads, "
        f"{processes} process{'es' if processes > 1 else ''}",
        "results": str(hparams.output_folder).removesuffix(CHECK if hparams.check else ""),
        "begins": _begin(brain),
    }
    return [f"{key:<15}{value}" for key, value in rows.items()]


def _mixer(hparams):
    mixer = getattr(hparams, "token_mixer", None)
    return "" if mixer is None else f", mixer {mixer_name(mixer)}"


def _millions(model):
    return f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f}"


def _begin(brain):
    epoch, steps = brain.hparams.epoch_counter.current, brain.optimizer_step
    if epoch == 0:
        encoder = getattr(brain.hparams, "encoder_folder", None)
        return "anew" if encoder is None else f"with the encoder of {encoder}"
    return f"after step {steps}, {'within' if brain.step else 'at the end of'} epoch {epoch}"
