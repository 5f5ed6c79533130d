"""The wheel and the source distribution, built and used where there is no clone."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
from tiny import ROOT

from speechbrain_summarymixing import systems

pytestmark = pytest.mark.slow
OPTIONS = (
    "--mini_train_utterances=40 --number_of_epochs=1 --averaged_checkpoints=1 --d_model=32 "
    "--num_encoder_layers=1 --d_ffn=32 --csgu_linear_units=32 --vocab_size=40 --test_beam_size=2 "
    "--device=cpu"
).split()


def run(*command, **options):
    done = subprocess.run(command, capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """The files of a clone, without its git folder: those that git knows, or would."""
    folder = tmp_path_factory.mktemp("clone")
    listed = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT)
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def built(sources, tmp_path_factory):
    """A folder with the source distribution, and the wheel that was built from it."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(sources))
    return folder


@pytest.fixture(scope="module")
def python(built, tmp_path_factory):
    """The interpreter of an environment with the wheel, and the packages that it depends on."""
    folder = tmp_path_factory.mktemp("environment") / "venv"
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin/python"
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(run(str(python), "-c", code).strip())
    # the paths of this environment, but not what its own .pth files add: the clone
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (wheel,) = built.glob("*.whl")
    install = ("install", "--quiet", "--no-deps", "--ignore-installed", str(wheel))
    run(sys.executable, "-m", "pip", "--python", str(python), *install)
    return python


def test_the_source_distribution_holds_what_the_clone_does(sources, built):
    (file,) = built.glob("*.tar.gz")
    with tarfile.open(file) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    files = {str(path.relative_to(sources)) for path in sources.rglob("*") if path.is_file()}
    assert files - names == set()


def test_the_servers_page_is_in_the_wheel(built):
    (wheel,) = built.glob("*.whl")
    assert "speechbrain_summarymixing/inference/page.html" in zipfile.ZipFile(wheel).namelist()


def test_every_system_is_in_the_wheel(python, tmp_path):
    listed = run(str(python.parent / "summarymixing"), "train", "--list", cwd=tmp_path)
    assert [line.split("\t")[0] for line in listed.splitlines()] == list(systems.names())


def test_it_trains_transcribes_and_measures_outside_the_clone(python, tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}

    def command(*arguments):
        module = (str(python), "-m", "speechbrain_summarymixing")
        return run(*module, *arguments, cwd=tmp_path, env=environment)

    code = "import speechbrain_summarymixing as package; print(package.__file__)"
    assert str(python.parents[1]) in run(str(python), "-c", code, cwd=tmp_path, env=environment)
    command("train", "sumformer", *OPTIONS)
    audio = sorted((tmp_path / "data/mini").rglob("*.flac"))[:2]
    model = tmp_path / "results/sumformer/1234/pretrained"
    assert len(command("transcribe", str(model), *map(str, audio)).splitlines()) == 2
    assert "sumformer" in command(
        "benchmark", "systems", "sumformer", "--seconds", "2", "--repetitions", "1"
    )
    plain = tmp_path / "plain.yaml"
    plain.write_text(command("flatten", "SLURP/direct/sumformer"))
    assert "!include" not in plain.read_text()
