"""Good input of each kind, how it is damaged, and what damaged input goes through: for fuzz.py."""

import asyncio
import io
import json
import shutil
from pathlib import Path

import numpy
import soundfile
from hypothesis import strategies as st
from serving import Echo
from tiny import EXAMPLE, FILES
from websockets.exceptions import ConnectionClosedOK

from speechbrain_summarymixing.analysis.evaluate import read_reference
from speechbrain_summarymixing.audio import audio_info, read_audio, read_part, read_segments
from speechbrain_summarymixing.corpora import common_voice, kaldi
from speechbrain_summarymixing.corpora.manifest import headers, read_manifest
from speechbrain_summarymixing.errors import UserError
from speechbrain_summarymixing.inference import server
from speechbrain_summarymixing.inference.language_model import language_model_yaml
from speechbrain_summarymixing.inference.streaming import StreamingModel
from speechbrain_summarymixing.inference.transcribe import load_model, transcribe
from speechbrain_summarymixing.inference.trust import check_yaml
from speechbrain_summarymixing.training.config import route_overrides, value_of
from speechbrain_summarymixing.training.options import parse_options

TOKENS = [
    *(b"\0", b"\xff", b"\xef\xbb\xbf", b'"', b"'", b",", b"\t", b"\n", b"\r", b" ", b"{", b"}"),
    *(b"[", b"]", b"nan", b"-inf", b"1e999", b"-1", b"9" * 400, b"0x7f", b"1_0", b"null", b"true"),
    *(b"\xff\xff\xff\xff", b"\0\0\0\0", b"\xff\xff\xff\x7f", b"\0\0\0\x80", b"data", b"RIFF"),
    *(b"OggS", b"fLaC", b"ID3", b"$data_root", b"../", b"/", b"~", b"|", b"\xe2\x80\xa8", b"!"),
    *(b"!apply:os.system [touch run]", b"!new:torch.nn.Linear", b"!ref <d>", b"&a [*a]", b"<<: "),
    *(b"!!python/name:os.system", b"(1, 2)", b": ", b"- ", b"? ", b"%TAG ", b"---\n", b'{"end":'),
]


EDITS = st.lists(
    st.tuples(
        st.sampled_from(["flip", "flip", "set", "cut", "drop", "token", "splice", "double"]),
        st.one_of(st.integers(0, 80), st.integers(0, 2**20)),  # headers, and the rest
        st.integers(0, 255),
    ),
    min_size=1,
    max_size=4,
)


def edited(content, edits, other=b""):
    """Content after edits, some of which take a piece of another's."""
    content = bytearray(content)
    for kind, place, value in edits:
        at = place % (len(content) + 1)
        if kind == "flip" and at < len(content):
            content[at] ^= 1 << value % 8
        elif kind == "set" and at < len(content):
            content[at] = value
        elif kind == "cut":
            del content[at:]
        elif kind == "drop":
            del content[at : at + value]
        elif kind == "token":
            token = TOKENS[value % len(TOKENS)]
            content[at : at + (len(token) if value > 127 else 0)] = token
        elif kind == "splice":
            content[at:] = other[place % (len(other) + 1) :]
        elif kind == "double":
            content[at:at] = content[at : at + value]
    return bytes(content)


def clips():
    """Short files of each format, by a name with its ending."""
    random = numpy.random.default_rng(0)
    made, rate = {}, 8000
    tone = 0.3 * numpy.sin(numpy.arange(rate // 5) / 5)
    mono = (tone + random.normal(0, 0.05, len(tone))).clip(-1, 1)
    kinds = ["wav PCM_16", "wav PCM_24", "wav FLOAT", "wav ULAW", "wav IMA_ADPCM", "wav GSM610"]
    kinds += ["rf64 PCM_16", "w64 PCM_16", "flac PCM_16", "ogg VORBIS", "ogg OPUS", "aiff PCM_16"]
    kinds += ["au PCM_16", "nist PCM_16", "mp3 MPEG_LAYER_III", "caf PCM_16"]
    for kind in kinds:
        form, subtype = kind.split()
        for channels in (1,) if subtype in ("GSM610", "IMA_ADPCM") else (1, 2):
            content = io.BytesIO()
            samples = numpy.stack([mono] * channels, 1)
            soundfile.write(content, samples, rate, format=form.upper(), subtype=subtype)
            made[f"{subtype}{channels}.{form}"] = content.getvalue()
    return made


class Inputs:
    """Good input of each kind, and what damaged input goes through."""

    def __init__(self, folder):
        self.folder = folder
        self.clips = clips()
        self.names = sorted(self.clips)
        self.good = folder / "good.wav"
        self.good.write_bytes(self.clips["PCM_161.wav"])
        rows = f"a,0.2,{self.good},s,A B,0,0.1,0\n" + f'b,0.1,{self.good},,"A, B",0.1,,\n'
        nemo = {"audio_filepath": "good.wav", "text": "A", "duration": 0.1, "offset": 0.05}
        lines = json.dumps(nemo) + "\n" + json.dumps({**nemo, "speaker": "s", "channel": 0}) + "\n"
        voice = f"client_id\tpath\tsentence\tlocale\ns\t{self.good}\tEin Wort, zwei.\tde\n"
        self.manifests = {
            "csv": ("ID,duration,wav,spk_id,wrd,start,stop,channel\n" + rows).encode(),
            "json": lines.encode(),
            "tsv": voice.encode(),
            "wav.scp": f"r {self.good}\nq {self.good}\n".encode(),
            "segments": b"u r 0.0 0.1\nv q 0.05 -1 0\n",
            "text": b"u A B\nv C\n",
            "utt2spk": b"u s\nv s\n",
            "txt": b"A B C\n",
        }
        self.yaml = (EXAMPLE / "hyperparams.yaml").read_bytes()
        self.system = b"task: recognition\nlr: 0.1\nspeeds: [95, 100]\nx: !ref <lr> * 2\ny: True\n"
        self.options = b"--lr\n0.2\n--speeds=[90]\n--y\nFalse"
        self.weights = {
            path.name: path.read_bytes()
            for path in EXAMPLE.iterdir()
            if path.suffix in (".ckpt", ".json")
        }
        self.streaming = StreamingModel(load_model(EXAMPLE, "cpu"))

    def audio(self):
        def read(names, edits, how, number):
            first, other = (self.names[n % len(self.names)] for n in names)
            content = edited(self.clips[first], edits, self.clips[other])
            path = self.write("audio" + Path(first).suffix, content)
            if how == "info":
                audio_info(path, to_the_end=True)
            elif how == "whole":
                read_audio(path)
            elif how == "content":
                read_audio(content, 8000, name=first)
            elif how == "part":
                read_part(path, seconds=0.05, place=number % 11 / 10)
            elif how == "segment":
                read_audio(path, start=number / 1000, stop=number / 500, channel=number % 3)
            else:
                list(read_segments(path, longest=0.05 + number % 100 / 1000))

        how = st.sampled_from(["info", "whole", "content", "part", "segment", "segments"])
        numbers = st.integers(0, 1000)
        return read, (st.tuples(numbers, numbers), EDITS, how, numbers)

    def manifest(self):
        def read(kind, edits):
            content = edited(self.manifests[kind], edits, self.manifests["json"])
            if kind in ("csv", "json"):
                path = self.write(f"manifest.{kind}", content)
                heard(read_manifest(path, data_root=self.folder))
            elif kind == "tsv":
                self.write("voice/train.tsv", content)
                data, out = self.folder / "voice", self.folder / "out"
                common_voice.prepare(data, out, language="de", splits=["train"], progress=False)
            elif kind == "txt":
                self.write("texts/a.txt", content)
                self.write("texts/a.wav", self.clips["PCM_161.wav"])
                heard(read_reference(self.folder / "texts"))
            else:
                for name in ("wav.scp", "segments", "text", "utt2spk"):
                    one = content if name == kind else self.manifests[name]
                    self.write(f"kaldi/train/{name}", one)
                kaldi.prepare(
                    self.folder / "kaldi", self.folder / "out", splits=["train"], progress=False
                )

        return read, (st.sampled_from(sorted(self.manifests)), EDITS)

    def message(self):
        samples = st.binary(max_size=400)
        text = st.builds(
            lambda edits: edited(b'{"end": true}', edits).decode("utf-8", "replace"), EDITS
        )
        messages = st.lists(st.one_of(samples, samples, st.just('{"end": true}'), text), max_size=6)
        return (lambda sent: asyncio.run(talk(sent))), (messages,)

    def pcm(self):
        def hear(edits, kind):
            content = edited(self.clips["PCM_161.wav"][:1300], edits)
            samples = numpy.frombuffer(content[: len(content) // 8 * 8], kind)
            with self.streaming.open() as stream:
                stream.accept(samples)
                stream.finish()

        kinds = st.sampled_from(["<i2", "<f4", "<f8", ">i2", "u1", "<i4", "<f2"])
        return hear, (EDITS, kinds)

    def settings(self):
        def read(kind, edits):
            if kind == "model":
                text = edited(self.yaml, edits, self.system).decode("utf-8", "replace")
                check_yaml(text, "hyperparams.yaml")
            elif kind == "language model":
                content = edited(b"lm_model: &a\n  b: 3\n" + self.yaml[:900], edits, self.system)
                path = self.write("lm/hyperparams.yaml", content)
                language_model_yaml(path.parent)
            elif kind == "options":
                options = edited(self.options, edits, self.system).decode("utf-8", "replace")
                words = [word for word in options.split("\n") if word not in ("-h", "--help")]
                _, _, options = parse_options(["system.yaml", *words])
                route_overrides(self.write("system.yaml", self.system), options)
            else:
                path = self.write("system.yaml", edited(self.system, edits, self.yaml))
                value_of(path, "task", {"lr": 0.2})

        kinds = st.sampled_from(["model", "language model", "options", "system"])
        return read, (kinds, EDITS)

    def model(self):
        def load(name, edits, summed):
            folder = self.folder / "model"
            shutil.rmtree(folder, ignore_errors=True)
            files = {**self.weights, "hyperparams.yaml": self.yaml}
            files[name] = edited(files[name], edits, self.weights["normalizer.ckpt"])
            for other, content in files.items():
                if summed or other != "config.json" or name == other:
                    self.write(f"model/{other}", content)
            for answer in transcribe(load_model(folder, "cpu"), FILES[:1]):
                assert answer.error is None or answer.error.strip()

        names = sorted([*self.weights, "hyperparams.yaml", "hyperparams.yaml", "hyperparams.yaml"])
        return load, (st.sampled_from(names), EDITS, st.sampled_from([False, False, True]))

    def write(self, name, content):
        path = self.folder / name
        if not path.parent.is_dir():
            path.parent.mkdir(parents=True)
        path.write_bytes(content)
        return path


def heard(utterances):
    """Opens the audio of some utterances, as a command does that has read a manifest."""
    found = headers({u.wav for u in utterances[:3]}, workers=1, progress=False)
    for utterance in utterances[:3]:
        if isinstance(found[utterance.wav], str):
            raise UserError(found[utterance.wav])
        reason = utterance.seconds_in(found[utterance.wav])
        if isinstance(reason, str):
            raise UserError(reason)
        read_audio(utterance.wav, **utterance.part)


SHARES = {
    Inputs.audio: 0.6,
    Inputs.manifest: 0.2,
    Inputs.settings: 0.1,
    Inputs.message: 0.085,
    Inputs.pcm: 0.01,
    Inputs.model: 0.005,
}


class Socket:
    """In place of a websocket: its client sends some messages and leaves."""

    def __init__(self, messages):
        self.messages, self.sent, self.code = list(messages), [], None

    async def recv(self):
        await asyncio.sleep(0)
        if not self.messages:
            raise ConnectionClosedOK(None, None)
        return self.messages.pop(0)

    async def send(self, message):
        self.sent.append(json.loads(message))

    async def close(self, code):
        self.code = code


async def talk(messages):
    served, socket = server.SpeechServer(Echo()), Socket(messages)
    served.recogniser = server._Recogniser(served.model)
    task = asyncio.create_task(served.recogniser.run())
    try:
        await served._answer(socket)
    finally:
        task.cancel()
        served.recogniser.close()
    assert socket.code in (None, 1007), f"closed with {socket.code}: {socket.sent[-1:]}"
    if socket.code is not None:
        raise UserError(socket.sent[-1]["message"])
