"""Trains what a system's YAML file says: of any task, found by its name or its path."""

from speechbrain_summarymixing.errors import UserError
from speechbrain_summarymixing.systems import find
from speechbrain_summarymixing.tasks.classification import Classification
from speechbrain_summarymixing.tasks.language_model import LanguageModel
from speechbrain_summarymixing.tasks.pretraining import Pretraining
from speechbrain_summarymixing.tasks.recognition import ASR
from speechbrain_summarymixing.tasks.transducer import Transducer
from speechbrain_summarymixing.tasks.understanding import Understanding
from speechbrain_summarymixing.training import experiment
from speechbrain_summarymixing.training.config import value_of

LEARNT = (ASR, Transducer, Understanding, Classification, LanguageModel, Pretraining)
TASKS = {task.name: task for task in LEARNT}
TOKENIZER = "tokenizer"


def train(argv):
    """Trains, tests and exports what a system learns, by its key ``task``.

    Arguments
    ---------
    argv : list of str
        As for `experiment.run`; the first may be a system's name, as `systems.names` has it.
    """
    with experiment.errors_reported():
        file = find(argv[0])
        name = value_of(file, "task")
        if name not in (*TASKS, TOKENIZER):
            raise UserError(
                f"{file}: has no task, or one that is not known ({name}): write for example "
                f"task: {ASR.name}; there are {', '.join((*TASKS, TOKENIZER))}"
            )
    given = [str(file), *argv[1:]]
    if name == TOKENIZER:
        experiment.run_tokenizer(given)
    else:
        experiment.run(given, TASKS[name])
