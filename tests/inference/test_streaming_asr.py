"""Exports trained on chunks in SpeechBrain's `StreamingASR`: what our own streams say."""

import pytest
import soundfile
import torch
from speechbrain.inference.ASR import StreamingASR
from speechbrain.utils.dynamic_chunk_training import DynChunkTrainConfig
from tiny import FILES, task_of

from speechbrain_summarymixing.inference import streaming
from speechbrain_summarymixing.inference.streaming import StreamingModel
from speechbrain_summarymixing.inference.streaming_asr import Spelling, spell
from speechbrain_summarymixing.inference.transcribe import load_model, transcribe
from speechbrain_summarymixing.training import experiment

CLIPS = [soundfile.read(file, dtype="float32")[0] for file in FILES]


@pytest.fixture(scope="module", params=["sumformer_streaming", "sumformer_transducer"])
def export(request, command, tmp_path_factory):
    """The folder of an export whose weights are those of a talkative stranger."""
    yaml, folder = f"hparams/{request.param}.yaml", tmp_path_factory.mktemp(request.param)
    options = {"number_of_epochs": 1, "batch_seconds": 20, "num_decoder_layers": 0}
    options |= {"chunk_frames": "[8, 32]", "test_chunks": "null"}
    experiment.run(command(folder, yaml=yaml, **options), task_of(yaml))
    file = folder / "pretrained" / "model.ckpt"
    state, random = torch.load(file), torch.Generator().manual_seed(0)
    for name, weight in state.items():
        if weight.size(0) == 30:  # tokens, of the last layer or the predictor
            weight.copy_(torch.randn(weight.shape, generator=random))
            if name.endswith("bias"):
                weight[:3] = torch.tensor([3.0, -9.0, -9.0])  # blank, begin and end
    torch.save(state, file)
    (file.parent / "config.json").unlink()  # with the sums of other weights
    return folder / "pretrained"


@pytest.fixture
def all_sounds(monkeypatch):
    """SpeechBrain's interface asks a model about silence too."""
    monkeypatch.setattr(streaming, "has_speech", lambda x, *_: torch.ones(x.shape[:-1]).bool())


def tokens_of(model, clip, chunk, left):
    """The tokens and texts of SpeechBrain's interface."""
    config = DynChunkTrainConfig(chunk, left)
    size, context = model.get_chunk_size_frames(config), model.make_streaming_context(config)
    assert size == 640 * chunk
    tokens, text = [], ""
    count = model.hparams.fea_streaming_extractor.get_recommended_final_chunk_count(size)
    pieces = torch.as_tensor(clip).unsqueeze(0).split(size, 1)
    for piece in [*pieces, *[torch.zeros(1, size)] * count]:
        words, found = model.decode_chunk(context, model.encode_chunk(context, piece))
        tokens, text = tokens + found[0], text + words[0]
    return tokens, text


def own_tokens(model, clip, monkeypatch):
    """The tokens, their frames, and the text of a stream of ours."""
    found, step = [], model.search.step

    def noted(*arguments):
        told, state = step(*arguments)
        found.extend(told[0])
        return told, state

    with model.open() as stream, monkeypatch.context() as patch:
        patch.setattr(model.search, "step", noted)
        stream.accept(clip)
        stream.finish()
        return [e.token for e in found], [e.frame for e in found], stream.text


@pytest.mark.parametrize("chunk, left", [(1, 8), (5, None), (16, 2), (200, None)])
def test_the_same_tokens_and_words_as_our_streams(export, all_sounds, chunk, left, monkeypatch):
    model = StreamingASR.from_hparams(str(export), hparams_file="streaming.yaml")
    left_ms = None if left is None else 40 * chunk * left
    own = StreamingModel(load_model(export, "cpu"), chunk_ms=40 * chunk, left_ms=left_ms)
    for clip in CLIPS:
        assert len(clip) % (640 * chunk)
        tokens, _, text = own_tokens(own, clip, monkeypatch)
        assert len(set(tokens)) > 2
        assert tokens_of(model, clip, chunk, left) == (tokens, text)


def test_whole_chunks_end_in_zeros_which_only_the_last_chunk_sees(export, all_sounds, monkeypatch):
    model = StreamingASR.from_hparams(str(export), hparams_file="streaming.yaml")
    own = StreamingModel(load_model(export, "cpu"), chunk_ms=320)
    clip = CLIPS[0][: 7 * 8 * 640]
    tokens, frames, _ = own_tokens(own, clip, monkeypatch)
    before = [token for token, frame in zip(tokens, frames) if frame < 6 * 8]
    found, _ = tokens_of(model, clip, 8, None)
    assert before and found[: len(before)] == before and len(found) > len(before)


def test_a_batch_of_streams_and_one_after_another(export):
    model = StreamingASR.from_hparams(str(export), hparams_file="streaming.yaml")
    config = DynChunkTrainConfig(10)
    clips = torch.stack([torch.as_tensor(clip[:40000]) for clip in CLIPS])

    def hear(context, wavs):
        chunks = wavs.split(6400, 1)
        found = [model.encode_chunk(context, chunk) for chunk in chunks]
        assert found[0].shape[:2] == (len(wavs), 0) and found[1].size(1) == 10
        return torch.cat(found, 1)

    context = model.make_streaming_context(config)
    together = hear(context, clips)
    assert together.size(1) == 63
    for row, clip in zip(together, clips):
        alone = hear(model.make_streaming_context(config), clip.unsqueeze(0))[0]
        torch.testing.assert_close(row, alone, atol=1e-4, rtol=0)
    torch.testing.assert_close(hear(context, clips), together)


def test_what_lies_after_a_streams_length_is_not_heard(export):
    model = StreamingASR.from_hparams(str(export), hparams_file="streaming.yaml")
    config, noise = DynChunkTrainConfig(4), torch.rand(1, 1000)
    clip, length = torch.as_tensor(CLIPS[0][:2000]).unsqueeze(0), torch.tensor([0.5])
    clip = torch.nn.functional.pad(clip[:, :1000], (0, 1000))
    clean = model.encode_chunk(model.make_streaming_context(config), clip)
    clip[:, 1000:] = noise
    assert not torch.equal(clean, model.encode_chunk(model.make_streaming_context(config), clip))
    found = model.encode_chunk(model.make_streaming_context(config), clip, length)
    torch.testing.assert_close(found, clean)


def test_the_export_is_a_model_for_whole_files_too_and_its_card_tells_of_streams(export):
    assert all(said.error is None for said in transcribe(load_model(export, "cpu"), FILES))
    assert 'hparams_file="streaming.yaml"' in (export / "README.md").read_text()


def test_a_transcript_of_speechbrain_of_a_file(export, all_sounds):
    model = StreamingASR.from_hparams(str(export), hparams_file="streaming.yaml")
    own = StreamingModel(load_model(export, "cpu"))
    for file, clip in zip(FILES, CLIPS):
        text = model.transcribe_file(file, DynChunkTrainConfig(16), use_torchaudio_streaming=False)
        with own.open() as stream:
            stream.accept(clip)
            stream.finish()
            assert text == stream.text != ""


def test_our_streams_in_any_split(export):
    own = StreamingModel(load_model(export, "cpu"), chunk_ms=320)
    said = []
    for sizes in ([len(CLIPS[1])], [1, 5119, 6000], [700] * 60):
        with own.open() as stream:
            rest = torch.as_tensor(CLIPS[1])
            for size in sizes:
                stream.accept(rest[:size])
                rest = rest[size:]
            stream.accept(rest)
            stream.finish()
            said.append((stream.text, tuple(stream.final)))
    assert said[0][0] and said[1:] == said[:1] * 2


def test_text_of_chunks_is_that_of_the_whole(export):
    tokenizer, random = load_model(export, "cpu").tokenizer, torch.Generator().manual_seed(0)
    for _ in range(100):
        tokens = torch.randint(3, 30, (8,), generator=random).tolist()
        cuts = sorted(torch.randint(0, 9, (3,), generator=random).tolist())
        context, text = Spelling(), ""
        for start, end in zip([0, *cuts], [*cuts, 8]):
            text += spell(tokenizer, tokens[start:end], context)
        assert text.split() == tokenizer.decode_ids(tokens).split()
