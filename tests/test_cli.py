import sys

import pytest
from tiny import EXAMPLE

from speechbrain_summarymixing import cli


def test_no_command_is_a_usage_error(capsys):
    with pytest.raises(SystemExit) as error:
        cli.main([])
    assert error.value.code == 2


def test_version(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    assert capsys.readouterr().out.strip()


def test_a_path_that_cannot_be_used_is_told_without_a_traceback(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert cli.main(["export", str(EXAMPLE), str(tmp_path / "file/folder")]) == 1
    assert "error: " in (err := capsys.readouterr().err) and str(tmp_path / "file") in err
    assert cli.main(["flatten", 300 * "x"]) == 1
    assert 300 * "x" in capsys.readouterr().err


def test_closed_standard_output_is_no_traceback(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    assert cli.main(["flatten", "sumformer"]) == 0


@pytest.mark.parametrize("content", [None, "README.md"])
def test_a_folder_without_a_model_is_refused(tmp_path, capsys, content):
    folder = tmp_path / "model"
    if content:
        folder.mkdir()
        (folder / content).touch()
    assert cli.main(["transcribe", str(folder), "x.wav"]) == 1
    error = capsys.readouterr().err
    assert str(folder) in error and "pretrained" in error
