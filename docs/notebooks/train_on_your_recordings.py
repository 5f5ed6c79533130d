# %% [markdown]
# # Train on your recordings
#
# From a folder of recordings with their words to a recogniser of them. The recordings here are
# made by the synthesiser of the mini corpus, 48 short ones, so that the notebook runs anywhere
# (`pip install -e '.[mini]'`), in well under a minute; put yours in their place. **So few teach
# little beyond their own sentences**: for what anybody says, tens of hours and more are needed
# ([a model of your language](../start.md#a-model-of-your-language)).

# %%
import csv
import json
import shlex
import tempfile
from pathlib import Path

import soundfile

import speechbrain_summarymixing
from speechbrain_summarymixing import cli
from speechbrain_summarymixing.corpora import mini
from speechbrain_summarymixing.tasks.train import train

CLONE = Path(speechbrain_summarymixing.__file__).parents[1]
WORK = Path(tempfile.mkdtemp(prefix="recordings"))


def summarymixing(command):
    """Runs a command as a shell would; in a shell write it without the quotes."""
    print("$ summarymixing", command)
    assert cli.main(shlex.split(command)) == 0


# %% [markdown]
# ## Recordings
#
# A file of audio, of any format and rate, and beside it `<name>.txt` with what is said in it.

# %%
recordings = WORK / "recordings"
recordings.mkdir()
mini.build(WORK / "mini", train=32, dev=8, test=8, test_large=1, workers=1, progress=False)
for manifest in sorted((WORK / "mini").glob("*/*/1/*.trans.txt")):
    for line in manifest.read_text().splitlines():
        name, _, words = line.partition(" ")
        (manifest.parent / f"{name}.flac").rename(recordings / f"{name}.flac")
        (recordings / f"{name}.txt").write_text(words + "\n")
files = sorted(recordings.glob("*.flac"))
print(len(files), "recordings, the first says:", files[0].with_suffix(".txt").read_text().strip())

# %% [markdown]
# ## Manifests
#
# Three CSV files, of which no speaker should be in two. [Your data](../data.md) has the columns,
# and how NeMo's, Kaldi's, lhotse's and Hugging Face's forms are taken as they are, without this
# cell.

# %%
SPLITS = {"1": "train", "2": "valid", "3": "test"}  # the first digit of the mini corpus's speakers
for digit, split in SPLITS.items():
    with open(WORK / f"{split}.csv", "w", newline="", encoding="utf-8") as out:
        writer = csv.writer(out)
        writer.writerow(["ID", "duration", "wav", "spk_id", "wrd"])
        for file in files:
            if file.name[0] == digit:
                words = file.with_suffix(".txt").read_text().strip()
                speaker = file.name.partition("-")[0]
                writer.writerow([file.stem, soundfile.info(file).duration, file, speaker, words])

# %% [markdown]
# ## Train
#
# In a shell it is `summarymixing train sumformer --train_csv …`. On your data begin with the
# manifests and the output folder alone; the other options are for so few: CTC alone, small
# batches, few tokens (`--vocab_size`; if it is too large, the run tells the number), and the
# encoder of a trained model to begin with, which is held as it is (`--encoder_folder`,
# `--freeze_encoder_steps`). `--check True` tells memory and hours before a run. A run that is
# killed goes on by the same command.

# %%
output = WORK / "results"
options = f"""
    --train_csv {WORK}/train.csv --valid_csv {WORK}/valid.csv --test_csv {WORK}/test.csv
    --output_folder {output} --vocab_size 60
    --encoder_folder {CLONE}/examples/sumformer-mini --freeze_encoder_steps 1000
    --num_decoder_layers 0 --ctc_weight 1.0 --speeds [100] --batch_seconds 16
    --number_of_epochs 12 --averaged_checkpoints 1 --lr 0.005 --warmup_steps 10 --num_workers 0
    --device cpu --noprogressbar
"""
train(["sumformer", *shlex.split(options)])

# %% [markdown]
# ## What came of it
#
# `results.json` has the error rate and its interval, `wer_test.txt` the alignments, `curves.png`
# the losses.

# %%
results = json.loads((output / "results.json").read_text())["test"]["test"]
low, high = results["WER_95"]
print(f"WER {results['WER']:.1f}% ({low:.1f} to {high:.1f}) on {results['utterances']} utterances")
with open(output / "history.csv", newline="") as file:
    losses = [float(row["train_loss"]) for row in csv.DictReader(file)]
print("loss by epoch:", " ".join(f"{loss:.1f}" for loss in losses))
assert losses[-1] < 0.7 * losses[0]

# %% [markdown]
#     WER 49.0% (36.2 to 65.3) on 8 utterances
#     loss by epoch: 171.6 102.9 54.3 33.6 23.3 16.7 13.0 10.6 11.1 9.1 9.3 8.9
#
# The loss of the training sentences falls, and half of the words of others are wrong still.
# `pretrained` is the model to use, copy or upload:

# %%
test = next(file for file in files if file.name.startswith("3"))
summarymixing(f"transcribe --no-progress --device cpu {output}/pretrained {test}")
print("said:", test.with_suffix(".txt").read_text().strip())

# %% [markdown]
#     PALSEBUY SIXGS
#     said: PLEASE BUY SIX EGGS
#
# [Training](../training.md) has what else a run can do, [Use](../use.md) what to do with the
# model, and [troubleshooting](../troubleshooting.md) the messages that you may meet.
