"""What a model's YAML would run is told before it runs; what exports need passes."""

import json
import logging
import shutil
import sys
from dataclasses import replace

import hyperpyyaml
import pytest
from hyperpyyaml import resolve_references
from tiny import EXAMPLE, FILES, ROOT, SAID, task_of
from torch import nn

from speechbrain_summarymixing import cli, systems
from speechbrain_summarymixing.errors import UserError
from speechbrain_summarymixing.inference import export, trust
from speechbrain_summarymixing.inference.language_model import language_model_yaml
from speechbrain_summarymixing.inference.transcribe import load_model, transcribe
from speechbrain_summarymixing.training.config import route_overrides

HARMLESS = "speechbrain.nnet.linear.Linear"
RUN = "os.system"


@pytest.fixture
def folder(tmp_path):
    """A copy of the example, to be changed."""
    shutil.copytree(EXAMPLE, tmp_path / "model")
    return tmp_path / "model"


def add(folder, text):
    file = folder / "hyperparams.yaml"
    file.write_text(file.read_text() + text)
    return file


HOSTILE = {
    "apply": ("x: !apply:os.system [touch {run}]", "x would run os.system"),
    "new": ("x: !new:subprocess.Popen [[touch, {run}]]", "x would run subprocess.Popen"),
    "name": ("x: !name:os.system", "x would run os.system"),
    "a partial": ("x: !name:os.system\n  command: touch {run}", "x would run os.system"),
    "module": ("x: !module:antigravity", "x would run antigravity"),
    "applyref": ("x: !applyref:os.system [touch {run}]", "x would run os.system"),
    "include": ("x: !include:{other}", "x would read another file, .*other.yaml"),
    "include above": ("x: !include:../other.yaml", "x would read another file, ../other.yaml"),
    "python": ("x: !!python/object/apply:os.system [touch {run}]", "x would run"),
    "python's name": ("x: !!python/name:os.system", "x would run"),
    "verbatim": ("x: !<!apply:os.system> [touch {run}]", "x would run os.system"),
    "escaped": ("x: !apply:os%2Esystem [touch {run}]", "x would run os.system"),
    "nested": ("x:\n  y: [1, {{z: !apply:os.system [touch {run}]}}]", r"x\.y\[1\]\.z would run"),
    "a key": ("? !apply:os.system [touch {run}]\n: 1", "would run os.system"),
    "an alias": ("x: &a !apply:os.system [touch {run}]\ny: *a", "x would run os.system"),
    # through modules that are let through
    "torch's os": ("x: !apply:torch.os.system [touch {run}]", "would run torch.os.system"),
    "nn's os": ("x: !apply:torch.nn.modules.module.torch.os.system [t]", "would run torch.nn.mod"),
    "a module's torch": (
        "x: !name:speechbrain.nnet.linear.torch.os.system",
        "would run speechbrain.nnet.linear.torch.os.system",
    ),
    "another's class": (
        "x: !new:speechbrain.nnet.linear.torch.utils.data.DataLoader [[]]",
        "would run speechbrain.nnet.linear.torch",
    ),
    "another's layer": (
        "x: !new:speechbrain.nnet.attention.nn.Linear [1, 1]",
        "would run speechbrain.nnet.attention.nn.Linear",
    ),
    "a class of no layers": (
        "x: !new:speechbrain.nnet.schedulers.NewBobScheduler [1.0]",
        "would run speechbrain.nnet.schedulers.NewBobScheduler",
    ),
    "Popen": (
        "x: !new:speechbrain.core.subprocess.Popen [[touch, {run}]]",
        "would run speechbrain.core.subprocess.Popen",
    ),
    "our own imports": (
        "x: !name:speechbrain_summarymixing.nnet.summary_mixing.torch.load",
        "would run speechbrain_summarymixing.nnet.summary_mixing.torch.load",
    ),
    "a method": ("x: !name:torch.nn.Linear.forward", "would run torch.nn.Linear.forward"),
    "a function": ("x: !name:torch.nn.init.zeros_", "would run torch.nn.init.zeros_"),
    "torch.load": ("x: !apply:torch.load [{run}]", "would run torch.load"),
    "torch.hub": ("x: !apply:torch.hub.load [a/b, c]", "would run torch.hub.load"),
    "run_shell": (
        "x: !apply:speechbrain.utils.superpowers.run_shell [touch {run}]",
        "would run speechbrain.utils.superpowers.run_shell",
    ),
    "a model of the hub": (
        "x: !new:speechbrain.lobes.models.fairseq_wav2vec.FairseqWav2Vec2 [a, b]",
        "would run speechbrain.lobes.models.fairseq_wav2vec",
    ),
    "a listed name, applied": (
        "x: !apply:speechbrain_summarymixing.inference.export.load_strictly [1, 2]",
        "would run speechbrain_summarymixing.inference.export.load_strictly",
    ),
    # what hyperpyyaml makes of text
    "a tuple": ('x: (!!python/object/apply:os.system ["touch {run}"])', "x would run"),
    "a tuple in quotes": (
        """x: '(!!python/object/apply:os.system ["touch {run}"])'""",
        "x would run",
    ),
    "a tuple by tag": (
        """x: !tuple 'x!!python/object/apply:os.system ["touch {run}"])'""",
        "x would run",
    ),
    "a tuple of parts": (
        """a: '(!'\nb: '!python/object/apply:os.system ["touch {run}"])'\nx: !ref <a><b>""",
        "x would take '<a><b>'",
    ),
    "an attribute": ("x: !ref <tokenizer.Load>", "x would take '<tokenizer.Load>'"),
    "a power": ("n: 9\nx: !ref <n>**<n>**<n>**<n>", r"x would take '<n>\*\*<n>"),
    "a copy": ("x: !copy <model>", "x would take '<model>'"),
    "paths": (
        "x: !new:speechbrain.utils.parameter_transfer.Pretrainer\n  paths: {{model: /etc/passwd}}",
        "x would load by paths of !new:speechbrain.utils.parameter_transfer.Pretrainer",
    ),
    "merged paths": (
        "p: &p {{paths: {{model: /etc}}}}\n"
        "x: !new:speechbrain.utils.parameter_transfer.Pretrainer\n  <<: *p",
        "x would load by <<",
    ),
    "a directive": (None, "has a directive"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_would_run_is_named_with_its_line_before_it_runs(folder, tmp_path, capfd, name):
    text, message = HOSTILE[name]
    run = tmp_path / "run"
    (tmp_path / "other.yaml").write_text(f"x: !apply:os.system [touch {run}]\n")
    file = folder / "hyperparams.yaml"
    if text is None:
        file.write_text(f"%TAG !e! !apply:\n---\n{file.read_text()}x: !e!os.system [touch {run}]\n")
    else:
        file = add(folder, text.format(run=run, other=tmp_path / "other.yaml") + "\n")
    assert cli.main(["transcribe", "--device=cpu", str(folder), FILES[0]]) == 1
    told = capfd.readouterr().err
    with pytest.raises(UserError, match=message) as caught:
        load_model(folder, "cpu")
    assert f"error: {caught.value}" in told and "Traceback" not in told
    assert str(file) in str(caught.value) and "give --trust" in str(caught.value)
    assert "its ONNX form" in str(caught.value)
    if text is not None:
        line = int(str(caught.value).partition(", line ")[2].partition(":")[0])
        assert file.read_text().splitlines()[line - 1] in text.format(
            run=run, other=tmp_path / "other.yaml"
        )
    assert not run.exists() and "antigravity" not in sys.modules


@pytest.mark.parametrize("name", ["apply", "python", "a tuple", "applyref"])
def test_these_would_have_run(folder, tmp_path, name):
    """Else the tests above show nothing."""
    add(folder, HOSTILE[name][0].format(run=tmp_path / "run") + "\n")
    hyperpyyaml.load_hyperpyyaml((folder / "hyperparams.yaml").read_text())
    assert (tmp_path / "run").exists()


def test_what_references_put_together_is_seen_too(monkeypatch):
    """Were it not for the rule on references: the resolved file is read as well."""
    monkeypatch.setattr(trust, "check_references", lambda text, file: None)
    text = """a: '('\nb: '!!python/name:os.system)'\nx: !ref <a><b>\n"""
    with pytest.raises(UserError, match="x would run '.!!python/name:os.system"):
        trust.check_yaml(text, "hyperparams.yaml")


def test_with_trust_it_runs(folder, tmp_path):
    add(folder, f"x: !apply:os.system [touch {tmp_path / 'run'}]\n")
    model = load_model(folder, "cpu", trust=True)
    assert (tmp_path / "run").exists()
    assert next(transcribe(model, FILES[:1])).text == SAID["bus"]


COMMANDS = [
    ["transcribe", "MODEL", FILES[0]],
    ["transcribe", "--stream", "MODEL", FILES[0]],
    ["serve", "MODEL"],
    ["evaluate", str(EXAMPLE), "MANIFEST", "--against", "MODEL"],
    ["export", "MODEL", "OUT"],
    ["benchmark", "search", "MODEL", FILES[0]],
    ["benchmark", "streaming", "MODEL"],
    ["benchmark", "streaming", "--audio", FILES[0], "--aligner", "MODEL"],
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_each_command_that_loads_a_model_has_the_option(command, folder, tmp_path, monkeypatch):
    add(folder, f"x: !name:{RUN}\n")
    (tmp_path / "test.csv").write_text(f"ID,duration,wav,wrd\na,1,{FILES[0]},A\n")
    places = {"MODEL": folder, "MANIFEST": tmp_path / "test.csv", "OUT": tmp_path / "out"}
    command = [str(places.get(word, word)) for word in command]
    assert cli.main(command) == 1

    def load(file, *args, _load=hyperpyyaml.load_hyperpyyaml, **options):
        text = file.read()
        if RUN in text:
            raise KeyboardInterrupt
        return _load(text, *args, **options)

    monkeypatch.setattr("speechbrain.inference.interfaces.load_hyperpyyaml", load)
    assert cli.main([*command, "--trust"]) == 130  # it came to build the model


def test_a_language_model_is_looked_at_too(tmp_path):
    file = tmp_path / "hyperparams.yaml"
    model = "lm_model: !new:speechbrain.lobes.models.RNNLM.RNNLM\n  output_neurons: 9\n"
    file.write_text(model + "unused: !new:a.class.of.mine\n")
    assert "RNNLM" in language_model_yaml(tmp_path)
    run = tmp_path / "run"
    for text in (
        f"lm_model: !apply:os.system [touch {run}]\n",
        f"{model}x: !applyref:os.system [touch {run}]\n",
        f"{model}  rnn_neurons: !apply:os.system [touch {run}]\n",
        f"{model}x: !include:/etc/hostname\n",
    ):
        file.write_text(text)
        with pytest.raises(UserError, match=r"hyperparams\.yaml.* would .*give --trust"):
            language_model_yaml(tmp_path)
        assert not run.exists()
    file.write_text(f"{model}x: !applyref:os.system [touch {run}]\n")
    language_model_yaml(tmp_path, trust=True)
    assert run.exists()


@pytest.mark.parametrize(
    "text", ["a: 2\nb: !ref <a> + 3\n", "a: '__import__(\"os\").getpid()'\nb: !ref <a> + 3\n"]
)
def test_references_of_hyperpyyaml_count_but_call_nothing(text):
    found = hyperpyyaml.load_hyperpyyaml(text)
    assert found["b"] in (5, '__import__("os").getpid() + 3')


@pytest.mark.parametrize(
    "text",
    [
        "",
        "- 1\n",
        "x: [",
        "x: \x00\n",
        "[" * 5000,
        "x: &a [*a]\n",
        "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" if i else "a0: &a0 [1]\n"
                for i in range(12)),
    ],
    ids=["nothing", "a list", "open", "zero", "deep", "itself", "a billion"],
)  # fmt: skip
def test_no_yaml_is_told(text):
    with pytest.raises(UserError, match=r"hyperparams\.yaml: .*copy it again"):
        trust.check_yaml(text, "hyperparams.yaml")


INTERFACES = {
    "recognition": [export.RECOGNITION, export.CTC],
    "transducer": [export.TRANSDUCER],
    "understanding": [export.UNDERSTANDING],
    "classification": [export.CLASSIFICATION],
    "pretraining": [export.ENCODING],
}


def check_export(name):
    file = systems.names()[name]
    task = task_of(file.relative_to(ROOT)).name
    with open(file, encoding="utf-8") as stream:
        text = resolve_references(stream, route_overrides(file, {"output_folder": "out"}))
    text = text.getvalue()
    for interface in INTERFACES[task]:
        for yaml in filter(None, (interface.yaml, interface.streaming_yaml)):
            written = export.inference_yaml(text, replace(interface, yaml=yaml))
            trust.check_yaml(written, name)


SOME = ("sumformer", "sumformer_transducer", "Barista/direct/sumformer")
SOME += ("Google-speech-commands/sumformer", "branchformer_rotary", "sumformer_bestrq")
OTHERS = sorted(name for name in systems.names() if not {"LM", "Tokenizer"} & {*name.split("/")})


@pytest.mark.parametrize("name", SOME)
def test_what_a_system_exports_passes(name):
    check_export(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({*OTHERS} - {*SOME}))
def test_what_every_system_exports_passes(name):
    check_export(name)


def test_code_and_pickles_beside_a_model_are_left_alone(folder, tmp_path):
    (folder / "custom.py").write_text(f"open({str(tmp_path / 'run')!r}, 'w')\n")
    (folder / "__init__.py").write_text(f"open({str(tmp_path / 'run')!r}, 'w')\n")
    assert isinstance(load_model(folder, "cpu").mods, nn.ModuleDict)
    assert not (tmp_path / "run").exists()


EXAMPLES = [EXAMPLE, EXAMPLE.with_name("sumformer-mini-streaming")]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_config_tells_of_each_file_and_what_made_it(example):
    told = json.loads((example / "config.json").read_text())
    files = {"hyperparams.yaml", "model.ckpt", "normalizer.ckpt", "tokenizer.ckpt"}
    assert files <= told["sha256"].keys() and len(told["commit"]) == 40
    assert {"torch", "speechbrain", "speechbrain_summarymixing"} <= told["versions"].keys()


@pytest.mark.parametrize("name", ["model.ckpt", "normalizer.ckpt", "tokenizer.ckpt"])
def test_another_file_than_the_exported_is_refused_until_its_sum_is_gone(folder, name):
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name}: is not the file that was exported") as caught:
        load_model(folder, "cpu")
    assert "take its line out of config.json" in str(caught.value)


def test_a_yaml_that_was_changed_by_hand_is_told_and_used(folder, caplog):
    with caplog.at_level(logging.WARNING):
        load_model(folder, "cpu")
        assert "was changed since its export" not in caplog.text
        add(folder, "mine: 3\n")
        assert load_model(folder, "cpu").hparams.mine == 3
    assert "hyperparams.yaml: was changed since its export" in caplog.text


@pytest.mark.parametrize("text", ["{", "[]", '{"sha256": 3}', "[" * 100_000, b"\xff"])
def test_a_config_that_is_damaged_is_told(folder, text):
    (folder / "config.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=r"config\.json: is no JSON .* or delete it"):
        load_model(folder, "cpu")
    (folder / "config.json").write_text('{"speechbrain_interface": "EncoderASR"}')
    load_model(folder, "cpu")
