"""Which runs `compare` trains: systems x seeds x corpora, each with its settings."""

import hashlib
import json
import re
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path

import yaml

from speechbrain_summarymixing.analysis.size_matching import encoder_parameters, hyperparams, match
from speechbrain_summarymixing.analysis.systems import parse_settings
from speechbrain_summarymixing.corpora.corpus import declared
from speechbrain_summarymixing.data.sets import manifests
from speechbrain_summarymixing.errors import UserError
from speechbrain_summarymixing.training.config import INCLUDE, options_of

NAME = r"[A-Za-z0-9_][A-Za-z0-9_.+-]*"  # names folders
OWN = {  # options that are not to be set, and why
    "seed": "compare gives each run: leave it out (see --seeds)",
    "output_folder": "compare gives each run: leave it out (see --folder)",
    "check": "trains nothing that could be compared: leave it out",
}
PARTS_CSV = ("train_csv", "valid_csv", "test_csv", "shards")


@dataclass
class Named:
    """A system (its file) or a corpus, by a name, with settings of its own.

    Arguments
    ---------
    name : str
    file : str or None
        A system's hyperparameter file.
    settings : dict
        From an option to its value, YAML text.
    """

    name: str
    file: str | None = None
    settings: dict = field(default_factory=dict)


@dataclass(eq=False)
class Run:
    """One training: a system on a corpus with a seed.

    Arguments
    ---------
    corpus, system : str
        Names.
    seed : int
    file : str
        The system's hyperparameter file.
    content : str
        Digest of that file and those that it includes, without comments.
    settings : dict
        Options over those of the file, YAML text; without seed and output folder.
    encoder_parameters : int
    """

    corpus: str
    system: str
    seed: int
    file: str
    content: str
    settings: dict
    encoder_parameters: int

    def __str__(self):
        return f"{self.corpus} {self.system} seed {self.seed}"

    def folder(self, folder):
        """Returns the output folder of this run in that of the comparison."""
        return Path(folder) / self.corpus / self.system / str(self.seed)

    def stored(self):
        """What a run's results depend on, by which a finished run is known again."""
        names = ("seed", "content", "settings")
        return {name: value for name, value in asdict(self).items() if name in names}


def parse_system(text):
    """Reads ``FILE.yaml``, ``NAME=FILE.yaml`` or ``NAME=FILE.yaml:key=value,key=value``.

    Arguments
    ---------
    text : str

    Returns
    -------
    Named
        Named by its file, without the ending, where no name is given.

    Example
    -------
    >>> parse_system("wide=hparams/sumformer.yaml:csgu_linear_units=800,speeds=[95, 100]").settings
    {'csgu_linear_units': '800', 'speeds': '[95, 100]'}
    """
    named = re.match(r"([^/:=]*)=", text)
    file, settings = _split(text[named.end() :] if named else text)
    return _named(named[1] if named else Path(file).stem, file, settings, text)


def parse_corpus(text, *, own=False):
    """Reads ``NAME`` or ``NAME:key=value,key=value``; a NAME that nothing says more of is a corpus.

    Arguments
    ---------
    text : str
    own : bool
        Whether the corpora are those of a ``train.py`` of its own, of any name.

    Returns
    -------
    Named
        Without a file.

    Raises
    ------
    UserError
        If it names no corpus.
    """
    name, settings = _split(text)
    corpus = _named(name, None, settings, text)
    if not settings.keys() & set(PARTS_CSV):
        corpus.settings = {"corpus": name, **settings}
        if (given := corpus.settings["corpus"]) not in declared() and not own:
            raise UserError(
                f"--corpora {text}: the corpus is {given}, but must be one of "
                f"{', '.join(declared())}: for another give "
                f"{name}:train_csv=…,valid_csv=…,test_csv=…"
            )
    return corpus


def _split(text):
    """The part before settings, and the settings, as ``:key=value,key=value`` gives them."""
    found = re.fullmatch(r"(.*?)(?::(\w+=.*))?", text, re.DOTALL)
    texts = re.split(r",(?=\s*\w+=)", found[2]) if found[2] else []
    return found[1], settings_of(texts)


def settings_of(texts):
    """Returns a dict from an option to its value, YAML text, of texts ``key=value``."""
    texts = [text.strip() for text in texts]
    parse_settings(texts)
    return dict(text.split("=", 1) for text in texts)


def _named(name, file, settings, text):
    if not re.fullmatch(NAME, name):
        raise UserError(
            f"{text}: {name!r} names a folder, so it must be of letters, digits and _ . + -: give "
            "another name, as in NAME=FILE.yaml"
        )
    if taken := next((key for key in OWN if key in settings), None):
        raise UserError(f"{text}: sets {taken}, which {OWN[taken]}")
    return Named(name, file, settings)


def plan_runs(systems, corpora, seeds, *, settings=None, baseline=None, match_parameters=False):
    """Plans all runs and builds each system once, so that a wrong setting is told at once.

    Arguments
    ---------
    systems : list of Named
    corpora : list of Named
    seeds : sequence of int
    settings : dict
        Options of all, YAML text; each system takes those that its file has. Those of a corpus
        come before them, a system's own before both.
    baseline : str
        The name of a system.
    match_parameters : bool
        Give each encoder as many parameters as the baseline's, by the width that its file's
        ``size_option`` names.

    Returns
    -------
    list of Run
        All systems with the first seed on the first corpus come first.

    Raises
    ------
    UserError
        If a name or a seed stands twice, no file has an option, or a system cannot be built or
        matched.
    """
    settings = settings or {}
    _check_once("systems", [system.name for system in systems])
    _check_once("corpora", [corpus.name for corpus in corpora])
    _check_once("seeds", list(seeds))
    _named("settings", None, settings, "--set")
    options = {system.name: options_of(system.file) for system in systems}
    for key in dict.fromkeys([*settings, *(key for c in corpora for key in c.settings)]):
        if not any(key in known for known in options.values()):
            raise UserError(
                f"{key}: no such option in {', '.join(s.file for s in systems)}: see their keys "
                "and those of the parts that they include"
            )
    runs, made = [], {}
    for corpus in corpora:
        built = {}
        for system in sorted(systems, key=lambda s: s.name != baseline):  # the baseline first
            shared = {**settings, **corpus.settings}
            chosen = {k: v for k, v in shared.items() if k in options[system.name]}
            chosen |= system.settings
            if match_parameters and system.name != baseline:
                chosen |= match(system, chosen, built[baseline][1])
            built[system.name] = chosen, encoder_parameters(system.file, chosen)
            _make_corpus(system.file, chosen, made)
        runs += [
            Run(
                corpus=corpus.name,
                system=system.name,
                seed=seed,
                file=system.file,
                content=content_of(system.file),
                settings=built[system.name][0],
                encoder_parameters=built[system.name][1],
            )
            for seed in seeds
            for system in systems
        ]
    return runs


def _check_once(what, values):
    twice = [value for value in values if values.count(value) > 1]
    if twice:
        hint = f"give one another name, as in {twice[0]}2=FILE.yaml, or " * (what == "systems")
        raise UserError(
            f"two of the {what} are {twice[0]}, but each must be another: {hint}leave one out"
        )


def _make_corpus(file, settings, made):
    """Makes the mini corpus, which runs side by side must not do; ``made`` tells what is there."""
    hparams = hyperparams(file, settings)
    if hparams.get("corpus") != "mini" or any(hparams.get(key) is not None for key in PARTS_CSV):
        return
    folder = str(hparams["data_folder"])
    chosen = {key: hparams[key] for key in declared()["mini"].options.values()}
    if made.setdefault(folder, chosen) != chosen:
        raise UserError(
            f"the mini corpus in {folder} would be made with {made[folder]} and with {chosen}: "
            "give one of the two another data_folder"
        )
    with tempfile.TemporaryDirectory() as manifest_folder:
        manifests({**hparams, "manifest_folder": manifest_folder})


def content_of(file):
    """Returns a digest of a hyperparameter file and those that it includes, without comments."""
    return hashlib.sha256(json.dumps(_nodes(Path(file))).encode()).hexdigest()


def _nodes(path):
    root = yaml.compose(path.read_text(encoding="utf-8"))
    if root is None:
        return []
    includes = [v.tag[len(INCLUDE) :] for _, v in root.value if v.tag.startswith(INCLUDE)]
    return [yaml.serialize(root), *(_nodes(path.parent / include) for include in includes)]
