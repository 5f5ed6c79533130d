import csv
import errno
import json
import os
import re
import shutil
import signal

import pytest
import soundfile
import torch
from speechbrain.inference.ASR import EncoderDecoderASR

from speechbrain_summarymixing import audio
from speechbrain_summarymixing.corpora import manifest as manifests
from speechbrain_summarymixing.inference.transcribe import load_model, transcribe
from speechbrain_summarymixing.training import asr, curves, experiment
from speechbrain_summarymixing.training.data import train_tokenizer


@pytest.fixture
def train(command, tmp_path):
    """Runs a small training in a folder of its own and returns the folder."""

    def run(**options):
        experiment.run(command(tmp_path / "out", **options))
        return tmp_path / "out"

    return run


@pytest.fixture(scope="module")
def trained(command, tmp_path_factory):
    """The output folder of a finished small training."""
    folder = tmp_path_factory.mktemp("trained") / "out"
    experiment.run(command(folder))
    return folder


def manifest(folder, split="test"):
    with open(folder / f"{split}.csv", newline="") as file:
        return {row["ID"]: row for row in csv.DictReader(file)}


def hypotheses(folder, name="test"):
    """From each ID to the words of the test pass, out of its alignment file."""
    words = {}
    for block in (folder / f"wer_{name}.txt").read_text().split("=" * 80):
        lines = block.strip().splitlines()
        if lines and ", %WER" in lines[0]:
            key = lines[0].split(",")[0]
            hypothesis = lines[3] if len(lines) > 3 else ""
            words[key] = [
                w.strip() for w in hypothesis.split(";") if w.strip() not in ("", "<eps>")
            ]
    return words


def test_a_run_leaves_everything_it_promises(trained, noises):
    results = json.loads((trained / "results.json").read_text())
    assert set(results["test"]) == {"test"}
    test = results["test"]["test"]
    low, high = test["WER_95"]
    assert low <= test["WER"] <= high and test["utterances"] == 6
    assert sum(c["utterances"] for c in test["WER_by_seconds"].values()) == 6
    assert results["parameters"] > 1000 and results["train_seconds"] > 0
    history = curves.read(trained)
    assert [row["epoch"] for row in history] == ["1", "2"]
    assert results["optimizer_steps"] == int(history[-1]["steps"])
    for name in ("curves.png", "wer_test.txt", "train_log.txt", "log.txt", "hyperparams.yaml"):
        assert (trained / name).stat().st_size > 0, name
    assert sorted(p.name for p in (trained / "pretrained").iterdir()) == [
        "README.md", "hyperparams.yaml", "model.ckpt", "normalizer.ckpt", "tokenizer.ckpt",
    ]  # fmt: skip


def test_speechbrain_loads_the_export_and_says_the_words_of_the_test_pass(trained, noises):
    model = EncoderDecoderASR.from_hparams(source=str(trained / "pretrained"))
    said = hypotheses(trained)
    rows = manifest(noises)
    assert set(said) == set(rows)
    for key, row in rows.items():
        assert model.transcribe_file(row["wav"]).split() == said[key]
    together = transcribe(load_model(trained / "pretrained"), [r["wav"] for r in rows.values()])
    assert [t.text.split() for t in together] == [said[key] for key in rows]


def test_a_wrong_weight_file_is_refused(trained, tmp_path):
    folder = tmp_path / "pretrained"
    shutil.copytree(trained / "pretrained", folder)
    state = torch.load(folder / "model.ckpt")
    state["0.unknown"] = state.pop(next(iter(state)))
    torch.save(state, folder / "model.ckpt")
    with pytest.raises(RuntimeError, match="0.unknown"):
        EncoderDecoderASR.from_hparams(source=str(folder))


def test_test_only_gives_the_same_again(trained, command, capsys):
    before = json.loads((trained / "results.json").read_text())["test"]
    (trained / "results.json").unlink()
    experiment.run([*command(trained), "--test_only"])
    assert json.loads((trained / "results.json").read_text())["test"] == before


def test_audio_of_csv_files_is_opened_once(train, noises, tmp_path, monkeypatch):
    path = changed_manifest(noises, tmp_path / "train.csv", lambda rows: None)
    opened = []
    original = manifests.durations
    monkeypatch.setattr(
        manifests, "durations", lambda paths, **kw: opened.extend(paths) or original(paths, **kw)
    )
    train(train_csv=path, number_of_epochs=1)
    assert len(opened) == 24 + 5 + 6
    train(train_csv=path)
    assert len(opened) == 35
    changed_manifest(noises, path, lambda rows: rows[0].update(duration=9))
    with pytest.raises(SystemExit, match="train-0: 9 s, but the audio has"):
        train(train_csv=path)


def test_test_only_needs_no_training_set(train, noises, tmp_path):
    moved = tmp_path / "train.csv"
    shutil.copy(noises / "train.csv", moved)
    results = (train(train_csv=moved) / "results.json").read_text()
    moved.unlink()
    assert (train(train_csv=moved, test_only=True) / "results.json").read_text() == results


def test_other_transcripts_than_the_weights_are_refused(train, noises, tmp_path):
    path = tmp_path / "train.csv"
    shutil.copy(noises / "train.csv", path)
    before = (train(train_csv=path, number_of_epochs=1) / "tokenizer.model").read_bytes()
    changed_manifest(noises, path, lambda rows: rows[0].update(wrd="ZOO"))
    for _ in range(2):
        with pytest.raises(SystemExit, match="trained with the tokens of other transcripts"):
            train(train_csv=path)
    assert (tmp_path / "out/tokenizer.model").read_bytes() == before
    shutil.copy(noises / "train.csv", path)
    train(train_csv=path)


def test_files_of_one_name_are_told_apart(train, noises, tmp_path):
    csvs = {}
    for part in ("train", "valid", "test"):
        path = csvs[f"{part}_csv"] = tmp_path / part / "data.csv"
        path.parent.mkdir()
        shutil.copy(noises / f"{part}.csv", path)
    folder = train(**csvs, number_of_epochs=1)
    assert set(json.loads((folder / "results.json").read_text())["test"]) == {"test_data"}
    assert (folder / "wer_test_data.txt").is_file()
    shutil.copytree(tmp_path / "test", tmp_path / "more" / "test")
    both = f"{csvs['test_csv']},{tmp_path / 'more/test/data.csv'}"
    with pytest.raises(SystemExit, match="another set is called test_data too, by which results"):
        train(**{**csvs, "test_csv": both}, number_of_epochs=1)


def test_training_on_what_is_tested_is_refused(train, noises):
    with pytest.raises(SystemExit, match="train is to train on and to validate or test on"):
        train(valid_csv=noises / "train.csv")
    with pytest.raises(SystemExit, match="dev is to train on and to validate or test on"):
        train(train_csv="null", valid_csv="null", test_csv="null", train_splits="train,dev")


def test_long_audio_is_left_out_of_training_and_tested(train, noises):
    longest = sorted(manifest(noises, "train").values(), key=lambda row: float(row["duration"]))[-1]
    folder = train(max_seconds=float(longest["duration"]) - 0.01, number_of_epochs=1)
    told = "train: 1 of 24 utterances (0.00 h) are left out of training: outside 0.1 to"
    log = (folder / "log.txt").read_text()
    assert told in log and f"{longest['ID']}: " in log
    shutil.rmtree(folder)
    with pytest.raises(SystemExit, match="train: nothing to train on: 24 of 24 utterances"):
        train(max_seconds=0.2)
    assert json.loads(
        (train(max_seconds=0.9, number_of_epochs=1) / "results.json").read_text()
    )["test"]["test"]["utterances"] == len(manifest(noises, "test"))  # fmt: skip
    assert max(float(row["duration"]) for row in manifest(noises, "test").values()) > 0.9


@pytest.mark.parametrize(
    "options, message",
    [
        ({"lr": "fast"}, "--lr is 'fast', but must be a number"),
        ({"grad_accumulation_factor": 0}, "--grad_accumulation_factor is 0, but must be 1 or more"),
        ({"eval_precision": "fp16"}, "--eval_precision is fp16, which .* --eval_precision bf16"),
        ({"token_type": "words"}, "token_type is 'words', but must be one of bpe, unigram, char"),
    ],
)
def test_values_that_no_run_can_have(train, options, message):
    with pytest.raises(SystemExit, match=message):
        train(**options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_named(command, tmp_path):
    arguments = [a for a in command(tmp_path) if a != "--device=cpu"]
    with pytest.raises(SystemExit, match="--device is cuda, but torch finds no GPU: leave it out"):
        experiment.run([*arguments, "--device=cuda"])


def test_each_process_takes_its_own_gpu(command, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(experiment, "infer_device", lambda: "cuda:1")  # by LOCAL_RANK
    for given, taken in (("cuda", "cuda:1"), ("cuda:0", "cuda:0"), ("cpu", "cpu")):
        arguments = [a for a in command(tmp_path) if a != "--device=cpu"]
        _, run_opts = experiment.start([*arguments, f"--device={given}"])
        assert run_opts["device"] == taken


def test_test_only_without_training_says_so(train):
    with pytest.raises(SystemExit, match="nothing to test: train first"):
        train(test_only=True)


def test_other_settings_in_the_same_folder_are_refused(trained, command):
    with pytest.raises(SystemExit) as error:
        experiment.run(command(trained, lr=0.5, dropout=0.3))
    assert re.search(r"lr.*0\.002.*0\.5", str(error.value))
    assert "dropout" in str(error.value)


def test_unknown_option_and_missing_csv(train, tmp_path):
    with pytest.raises(SystemExit, match="--learning_rate: no such option"):
        train(learning_rate=1)
    with pytest.raises(SystemExit, match="--ctc_weight is 0, but must be above 0"):
        train(ctc_weight=0)
    with pytest.raises(SystemExit, match="give all three"):
        train(valid_csv="null")
    with pytest.raises(SystemExit, match="absent.csv"):
        train(valid_csv=tmp_path / "absent.csv")
    with pytest.raises(SystemExit, match="--corpus is timit, but must be one of"):
        train(corpus="timit", train_csv="null", valid_csv="null", test_csv="null")


def test_a_corpus_of_librispeechs_layout(train, noises, tmp_path):
    for split in ("train", "valid", "test"):
        for row in manifest(noises, split).values():
            key = (
                row["ID"]
                .replace("train-", "1-1-")
                .replace("valid-", "2-1-")
                .replace("test-", "3-1-")
            )
            chapter = tmp_path / "corpus" / split / key[0] / "1"
            chapter.mkdir(parents=True, exist_ok=True)
            shutil.copy(row["wav"], chapter / f"{key}.flac")
            with open(chapter / f"{key[0]}-1.trans.txt", "a") as file:
                file.write(f"{key} {row['wrd']}\n")
    csvs = {f"{split}_csv": "null" for split in ("train", "valid", "test")}
    splits = {f"{split}_splits": split for split in ("train", "valid", "test")}
    options = {"corpus": "librispeech", "data_folder": tmp_path / "corpus", **csvs, **splits}
    results = json.loads((train(**options) / "results.json").read_text())
    assert results["test"]["test"]["utterances"] == 6
    (tmp_path / "corpus/train").rename(tmp_path / "elsewhere")
    again = train(**options, test_only=True) / "results.json"
    assert json.loads(again.read_text()) == results
    (tmp_path / "elsewhere").rename(tmp_path / "corpus/train")
    with pytest.raises(SystemExit, match="no split dev-clean; it holds test, train, valid"):
        train(**{**options, "test_splits": "test,dev-clean"})


def changed_manifest(noises, path, change):
    """A copy of train.csv whose rows went through ``change``."""
    with open(noises / "train.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    change(rows)
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_one_report_names_every_bad_utterance_before_training(train, noises, tmp_path):
    def spoil(rows):
        rows[0]["wav"] = str(tmp_path / "gone.flac")
        rows[1]["duration"] = "0.0"
        rows[2]["wrd"] = ""
        rows[3]["ID"] = rows[4]["ID"]
        cut = tmp_path / "cut.flac"
        with open(rows[6]["wav"], "rb") as file:
            cut.write_bytes(file.read()[:-100])
        rows[6]["wav"] = str(cut)
        rows[7]["duration"] = "999"

    path = changed_manifest(noises, tmp_path / "train.csv", spoil)
    with pytest.raises(SystemExit) as error:
        train(train_csv=path)
    for expected in ("gone.flac", "train-1", "train-2", "train-4", "cut.flac", "train-7: 999 s"):
        assert expected in str(error.value), expected
    assert not list((tmp_path / "out").glob("save/*"))


def test_characters_unknown_to_the_tokens_are_told_and_no_training_text_has_them(
    train, noises, tmp_path
):
    def foreign(rows):
        for row in rows:
            row["ID"] = "v" + row["ID"]
        rows[5]["wrd"] = "ÉTÉ"

    path = changed_manifest(noises, tmp_path / "valid.csv", foreign)
    folder = train(valid_csv=path, number_of_epochs=1)
    told = "1 transcripts of valid that no hypothesis can equal:\n  vtrain-5: characters not in"
    assert told in (folder / "log.txt").read_text()
    assert float(curves.read(folder)[-1]["valid_loss"]) > 0
    other = train_tokenizer(["SET"] * 9, tmp_path / "other/tokenizer.ckpt", vocab_size=7)
    assert other.get_piece_size() == 7
    with pytest.raises(SystemExit, match="transcripts that cannot be spelled(.|\n)*the tokenizer"):
        shutil.rmtree(folder)
        train(tokenizer_folder=tmp_path / "other", vocab_size=7)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_file_that_turns_out_corrupt_is_named(train, noises, corrupt, tmp_path, num_workers):
    def spoil(rows):
        rows[7]["wav"] = corrupt(rows[7])

    path = changed_manifest(noises, tmp_path / "train.csv", spoil)
    with pytest.raises(SystemExit) as error:
        train(train_csv=path, num_workers=num_workers)
    assert "corrupt.wav" in str(error.value) and "Traceback" not in str(error.value)


def test_a_nan_loss_stops_with_the_ids_and_spoils_no_weight(train, monkeypatch):
    seen = {}
    original = asr.ASR.compute_objectives

    def poisoned(self, predictions, batch, stage):
        loss = original(self, predictions, batch, stage)
        if self.optimizer_step == 2:
            seen.update(ids=batch.id, brain=self)
            return loss * float("nan")
        return loss

    monkeypatch.setattr(asr.ASR, "compute_objectives", poisoned)
    with pytest.raises(SystemExit) as error:
        train()
    assert all(key in str(error.value) for key in seen["ids"])
    assert "the loss is nan" in str(error.value)
    assert all(p.isfinite().all() for p in seen["brain"].hparams.model.parameters())


def test_ctrl_c_saves_says_how_to_resume_and_loses_no_step(train, monkeypatch, trained):
    original = asr.ASR.fit_batch

    def interrupted(self, batch):
        if self.optimizer_step == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, batch)

    monkeypatch.setattr(asr.ASR, "fit_batch", interrupted)
    with pytest.raises(SystemExit, match="after optimiser step 4.*The same command goes on"):
        train()
    monkeypatch.setattr(asr.ASR, "fit_batch", original)
    folder = train()
    steps = [row["steps"] for row in curves.read(folder)]
    assert steps == [row["steps"] for row in curves.read(trained)]


def test_a_full_disk_is_named_and_loses_no_checkpoint(train, monkeypatch):
    original = asr.export

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device", "model.ckpt")

    monkeypatch.setattr(asr, "export", full)
    with pytest.raises(SystemExit, match="no space left to write model.ckpt"):
        train()
    monkeypatch.setattr(asr, "export", original)
    folder = train()
    assert (folder / "pretrained" / "model.ckpt").is_file()


def test_other_rates_and_channels_are_converted(train, noises, tmp_path, monkeypatch):
    monkeypatch.setattr(audio, "_said", set())

    def convert(rows):
        wav, _ = soundfile.read(rows[0]["wav"])
        rows[0]["wav"] = str(tmp_path / "stereo.wav")
        soundfile.write(rows[0]["wav"], torch.tensor(wav).repeat(2, 1).T.numpy(), 8000)
        rows[0]["duration"] = str(len(wav) / 8000)

    train(train_csv=changed_manifest(noises, tmp_path / "train.csv", convert), number_of_epochs=1)
    log = (tmp_path / "out" / "log.txt").read_text()
    assert log.count("8000 Hz") == 1 and log.count("2 channels") == 1


def test_speechbrain_run_options(train):
    folder = train(precision="bf16", grad_accumulation_factor=2, debug=True)
    assert (folder / "pretrained").is_dir()
    with pytest.raises(SystemExit, match="--precision is fp16, which .* --precision bf16"):
        train(precision="fp16")


def test_activation_checkpointing_changes_no_result(train, trained):
    folder = train(activation_checkpointing="True", dropout=0.1)
    for name in ("train_loss", "valid_loss"):
        expected = [float(row[name]) for row in curves.read(trained)]
        assert [float(row[name]) for row in curves.read(folder)] == pytest.approx(expected)


def test_a_lack_of_memory_names_the_longest_utterance_and_the_setting(train, noises, monkeypatch):
    seen = []

    def full(self, predictions, batch, stage):
        seen.extend(zip(map(float, batch.duration), batch.id))
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(asr.ASR, "compute_objectives", full)
    with pytest.raises(SystemExit) as error:
        train()
    seconds, key = max(seen)
    assert f"{key} of {seconds:.1f} s" in str(error.value)
    assert "--batch_seconds (4 now)" in str(error.value)
    assert "--activation_checkpointing True" in str(error.value)


def test_tensorboard_is_an_option(train):
    folder = train(tensorboard="True")
    assert list((folder / "tensorboard").glob("**/events*"))


def test_a_missing_tensorboard_is_named(train, monkeypatch):
    def missing(**_):
        raise ImportError("tensorboard")

    monkeypatch.setattr(experiment, "TensorboardLogger", missing)
    with pytest.raises(SystemExit, match=r'pip install "speechbrain-summarymixing\[tensorboard\]"'):
        train(tensorboard="True")
