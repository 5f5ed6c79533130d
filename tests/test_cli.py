import pytest

from speechbrain_summarymixing import cli


def test_no_command_is_a_usage_error(capsys):
    with pytest.raises(SystemExit) as error:
        cli.main([])
    assert error.value.code == 2


def test_version(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize("content", [None, "README.md"])
def test_a_folder_without_a_model_is_refused(tmp_path, capsys, content):
    folder = tmp_path / "model"
    if content:
        folder.mkdir()
        (folder / content).touch()
    assert cli.main(["transcribe", str(folder), "x.wav"]) == 1
    error = capsys.readouterr().err
    assert str(folder) in error and "pretrained" in error
