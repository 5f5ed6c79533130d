import pytest

from speechbrain_summarymixing.errors import UserError
from speechbrain_summarymixing.training.options import parse_options

DAY = {"output_folder": "2026-11-28", "day": "2026-11-28"}
NUMBERS = {"output_folder": "7", "train_csv": "1.5", "lm_text": "true", "seed": 7}


@pytest.mark.parametrize(
    "words, options",
    [
        (["--lr", "1e-3", "--width=16"], {"lr": 1e-3, "width": 16}),
        (["--data_folder", "/a=b", "--csv=c=d.csv"], {"data_folder": "/a=b", "csv": "c=d.csv"}),
        (["--speeds", "[95, 100]", "--check", "True"], {"speeds": [95, 100], "check": True}),
        (["--words", "yes no", "--folder=/a #1: x"], {"words": "yes no", "folder": "/a #1: x"}),
        (["--lr", "-3", "--name", "'7'", "--none", "null"], {"lr": -3, "name": "7", "none": None}),
        (["--lr", "--width", "", "--map={a: 1}"], {"lr": None, "width": None, "map": {"a": 1}}),
        (["--output_folder", "2026-11-28", "--day", "2026-11-28"], DAY),
        (["--output_folder=7", "--train_csv=1.5", "--lm_text=true", "--seed=7"], NUMBERS),
        (["--encoder_folder", "null"], {"encoder_folder": None}),
        (["--ckpt_interval_minutes", "0.5"], {"ckpt_interval_minutes": 0.5}),
    ],
)
def test_options_are_read_as_yaml_and_lose_nothing(words, options):
    path, run_opts, read = parse_options(["x.yaml", "--device", "cpu", *words, "--debug"])
    assert (path, run_opts["device"], run_opts["debug"]) == ("x.yaml", "cpu", True)
    assert read == options


def test_speechbrains_options_are_its_own():
    words = ["--max_grad_norm=1", "--jit_module_keys", "a", "b", "--lr", "1", "--test_only"]
    _, run_opts, options = parse_options(["x.yaml", *words])
    assert (run_opts["max_grad_norm"], run_opts["jit_module_keys"]) == (1.0, ["a", "b"])
    assert run_opts["test_only"] and options == {"lr": 1}
    assert "max_grad_norm" in run_opts.overridden_args


@pytest.mark.parametrize(
    "words, message",
    [
        (["--output_folder", "F", "--test_only", "True"], "--test_only .* 'True', but takes no"),
        (["--debug=False"], "--debug is followed by 'False', but takes no value"),
        (["--output_folder", "F", "G"], "--output_folder .* 'F G', but takes one value: quote"),
        (["--device", "cpu", "cuda"], "--device is followed by 'cpu cuda', but takes one value"),
        (["word"], "'word' is no option: write --key value"),
        (["--lr", "1", "--width", "2", "--lr", "2"], "^--lr is given twice"),
        (["--lr", "[1"], r"--lr is '\[1', which is no YAML .*quote"),
    ],
)
def test_words_that_are_no_option_are_refused(words, message):
    with pytest.raises(UserError, match=message):
        parse_options(["x.yaml", *words])
    with pytest.raises(UserError, match="^--lr: the system's YAML file comes before"):
        parse_options(["--lr", "1", "x.yaml"])


@pytest.mark.parametrize("words", [[], ["--help"], ["x.yaml", "--lr", "1", "-h"]])
def test_the_usage_is_told(words, capsys):
    with pytest.raises(SystemExit):
        parse_options(words)
    assert "usage:" in "".join(capsys.readouterr())
