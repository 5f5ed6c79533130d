"""Whole models with the key names of the published checkpoints."""

from speechbrain_summarymixing.nnet.published import published_weights
from speechbrain_summarymixing.nnet.summary_mixing import SummaryMixing

TABLES = ("pe", "inv_freq")  # of positions, which are computed here and not loaded
MERGE = "merge_proj"  # a Branchformer layer's MLP, whose layers are taken in their order
SHOWN = 5


def load_published_model(model, state_dict):
    """Loads a whole published checkpoint: what is not a cell has SpeechBrain's names in both.

    Arguments
    ---------
    model : torch.nn.Module
        Built with the sizes and forms of the checkpoint: the list of front-end, transformer and
        heads that ``hparams/parts/asr.yaml`` calls ``model``, or any part that has the same names.
    state_dict : dict
        Tensors of all modules: SpeechBrain's names, and within each cell those that
        `published_weights` takes.

    Raises
    ------
    ValueError
        If keys are missing or left over, or a shape does not fit; the model is then unchanged.
    """
    left = {key: v for key, v in state_dict.items() if key.rpartition(".")[2] not in TABLES}
    loaded, wrong = {}, []
    for name, module in model.named_modules():
        if not (isinstance(module, SummaryMixing) or name.rpartition(".")[2] == MERGE):
            continue
        inside = [key for key in left if key.startswith(f"{name}.")]
        theirs = {key[len(name) + 1 :]: left.pop(key) for key in inside}
        if isinstance(module, SummaryMixing):
            try:
                theirs = published_weights(module, theirs)
            except ValueError as error:
                wrong.append(f"{name}: {error}")
        elif len(theirs) == len(own := module.state_dict()):
            theirs = dict(zip(own, theirs.values()))
        loaded |= {f"{name}.{key}": value for key, value in theirs.items()}
    expected = model.state_dict()
    loaded |= left | {key: v for key, v in expected.items() if key.rpartition(".")[2] in TABLES}
    if not wrong:
        wrong = [
            f"{key}: {tuple(loaded[key].shape) if key in loaded else 'missing'}, but here "
            f"{tuple(expected[key].shape) if key in expected else 'missing'}"
            for key in (*expected, *(loaded.keys() - expected.keys()))
            if not (key in loaded and key in expected and loaded[key].shape == expected[key].shape)
        ]
    if wrong:
        more = f"; and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        raise ValueError(
            f"the checkpoint does not fit this model: {'; '.join(wrong[:SHOWN])}{more}: build it "
            "with the checkpoint's sizes, form and norms"
        )
    model.load_state_dict(loaded)
