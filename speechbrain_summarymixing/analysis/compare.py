"""Systems x seeds x corpora, trained in one run that can be resumed, and compared."""

import json
import os
import shutil
import sys
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from speechbrain.utils.distributed import infer_device
from tqdm import tqdm

from speechbrain_summarymixing.analysis.compare_jobs import LOG, Job, run_jobs
from speechbrain_summarymixing.analysis.compare_plan import (
    parse_corpus,
    parse_system,
    plan_runs,
    settings_of,
)
from speechbrain_summarymixing.analysis.comparison_table import (
    measures_of,
    read_results,
    write_comparison,
)
from speechbrain_summarymixing.analysis.measuring import machine
from speechbrain_summarymixing.errors import UserError
from speechbrain_summarymixing.files import locked, write_atomically
from speechbrain_summarymixing.inference.provenance import checkout, versions
from speechbrain_summarymixing.systems import find

RUN_FILE = "run.json"  # in a run's folder: what it depends on, and whether it is finished


def compare(
    systems,
    folder,
    *,
    seeds=(1, 2, 3),
    corpora=("mini",),
    settings=(),
    baseline=None,
    match_parameters=False,
    train=None,
    device=None,
    jobs=1,
    keep_checkpoints=False,
    progress=True,
    command=None,
):
    """Trains all runs that are not finished, and writes the comparison of all that are.

    Arguments
    ---------
    systems, corpora : sequence of str
        As for `parse_system` and `parse_corpus`.
    folder : str or Path
        Where results go; each run has FOLDER/<corpus>/<system>/<seed>.
    seeds : sequence of int
    settings : sequence of str
        Options ``key=value`` of every system whose file has them.
    baseline : str or None
        The system that the others are compared to; None takes the last.
    match_parameters : bool
        As in `plan_runs`.
    train : str or None
        A ``train.py`` of your own, which knows what the corpora are; None trains by each system's
        key ``task``.
    device : str or None
        Of the runs; None takes a GPU where there is one.
    jobs : int
        Runs side by side, each of one thread.
    keep_checkpoints : bool
        Keep those of finished runs too.
    progress : bool
        Show a progress bar.
    command : str or None
        The command line, to be stored.

    Returns
    -------
    dict
        From each run that failed to the reason.

    Raises
    ------
    UserError
        If an argument cannot be used, the folder is in use, systems were tested on different
        utterances, or what a run has written cannot be used.
    KeyboardInterrupt
        After Ctrl-C or SIGTERM, when the runs have saved their state.
    """
    systems = [parse_system(text) for text in systems]
    systems = [replace(system, file=str(find(system.file))) for system in systems]
    names = [system.name for system in systems]
    baseline = _checked(names, seeds, corpora, baseline, jobs)
    if train is not None and not Path(train).is_file():
        raise UserError(f"--train {train}: no such file: give a train.py")
    runs = plan_runs(
        systems,
        [parse_corpus(text, own=train is not None) for text in corpora],
        list(seeds),
        settings=settings_of(settings),
        baseline=baseline,
        match_parameters=match_parameters,
    )
    folder = Path(folder)
    with _locked(folder) as lock:
        options = ["--noprogressbar", *([f"--device={device}"] if device else [])]
        failed = _train(runs, folder, train, options, lock, jobs, keep_checkpoints, progress)
        finished = [run for run in runs if run not in failed]
        about = {
            "command": command,
            "commit": checkout(),
            "versions": versions(),
            "machine": machine(device or infer_device()),
            "cores": os.cpu_count(),
            "threads_of_a_run": 1,
            "jobs": jobs,
            "baseline": baseline,
            "match_parameters": match_parameters,
            "failed": {str(run): reason for run, reason in failed.items()},
        }
        if finished:
            write_comparison(finished, folder, baseline, about)
    return failed


def _checked(names, seeds, corpora, baseline, jobs):
    """The baseline's name, if the arguments can be used."""
    if not names or not seeds or not corpora:
        raise UserError("compare needs a system, a seed and a corpus or more: give each")
    baseline = names[-1] if baseline is None else baseline
    if baseline not in names:
        raise UserError(f"--baseline is {baseline}, but must be one of {', '.join(names)}")
    if jobs < 1:
        raise UserError(f"--jobs is {jobs}, but must be 1 or more")
    return baseline


@contextmanager
def _locked(folder):
    """Makes the folder and gives a file descriptor that bars others as long as it is open.

    Runs inherit it: those that a killed compare left are done before another begins.
    """

    def refusal(who):
        return (
            f"--folder {folder}: {who} works in it, another compare or a run that one has left: "
            "wait until it has ended, or give another folder"
        )

    with ExitStack() as stack:
        try:
            lock = stack.enter_context(locked(folder / ".lock", refusal))
        except OSError as error:
            raise UserError(
                f"--folder {folder}: cannot be used ({error.strerror}): give another"
            ) from error
        yield lock


def _train(runs, folder, train, options, lock, jobs, keep_checkpoints, progress):
    """Trains the runs that are not finished; returns those that failed, and why."""
    todo, failed = {}, {}
    bar = tqdm(total=len(runs), unit="run", disable=None if progress else True)

    def tell(line):
        with bar.external_write_mode():
            print(line, file=sys.stderr, flush=True)

    def ended(index, reason):
        run, place = todo[index], todo[index].folder(folder)
        try:
            told = _measured(place) if reason is None else None
        except UserError as error:
            reason = f"wrote no results: {error} (see {place / LOG})"
        if reason is None:
            _store(run, place, train, finished=True)
            if not keep_checkpoints:
                shutil.rmtree(place / "save", ignore_errors=True)
            tell(f"{run}: {told}")
        else:
            failed[run] = reason
            tell(f"{run}: failed, {reason}")
        bar.update()

    started = []
    with bar:
        for index, run in enumerate(runs):
            place = run.folder(folder)
            if _is_finished(run, place, train, tell):
                if not keep_checkpoints:  # which a kill has left
                    shutil.rmtree(place / "save", ignore_errors=True)
                bar.update()
                continue
            todo[index] = run
            _store(run, place, train, finished=False)
            arguments = {**run.settings, "seed": run.seed, "output_folder": place}
            listed = [f"--{key}={value}" for key, value in arguments.items()]
            started.append(Job(index, place, [run.file, *options, *listed]))
        run_jobs(started, ended, side_by_side=jobs, train=train, lock=lock)
    return failed


def _store(run, place, train, *, finished):
    content = {
        **run.stored(),
        "train": _resolved(train),
        "finished": finished,
        "commit": checkout(),
    }
    write_atomically(place / RUN_FILE, json.dumps(content, indent=2) + "\n")


def _resolved(train):
    return None if train is None else os.path.realpath(str(train))


def _is_finished(run, place, train, tell):
    """Whether a run of these settings is finished; one of others is moved out of the way."""
    try:
        old = json.loads((place / RUN_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    if not isinstance(old, dict) or not isinstance(old.get("settings"), dict):
        old = {"settings": {}}  # not of compare
    old["train"] = _resolved(old.get("train"))
    new = {**old, **run.stored(), "train": _resolved(train)}
    if new == old:
        return old.get("finished", False) and (place / "results.json").is_file()
    if (place / "results.json").is_file() or any(place.glob("save/CKPT*")):
        count = 1
        while (aside := place.with_name(f"{place.name}.old{count}")).exists():
            count += 1
        place.rename(aside)
        then, now = ({**stored, **stored["settings"], "settings": None} for stored in (old, new))
        keys = [key for key in {**now, **then} if now.get(key) != then.get(key)]
        what = ", ".join(f"{key} of {run.file}" if key == "content" else key for key in keys)
        tell(f"{run}: trained anew with other settings ({what}); the run before is now {aside}")
    return False


def _measured(place):
    """A line of what a finished run measured."""
    results = read_results(place)
    sets = (
        f"{name} {', '.join(f'{key} {value:.2f}%' for key, value in measures_of(scores).items())}"
        for name, scores in results["test"].items()
    )
    return f"{'; '.join(sets)}; {results['train_seconds']:.0f} s of training"
