"""SpeechBrain's own recipes with the swap that docs/swap.md tells: their YAML and their Brain."""

import inspect
import re

import pytest
import speechbrain as sb
import torch
from hyperpyyaml import load_hyperpyyaml
from speechbrain.dataio.batch import PaddedBatch
from speechbrain.lobes.models.transformer.TransformerASR import TransformerASR
from tiny import ROOT

from speechbrain_summarymixing.lobes.asr import SummaryMixingASR
from speechbrain_summarymixing.nnet.selective_summary_mixing import SelectiveSummaryMixing

# the shape of recipes/LibriSpeech/ASR: transformer, CTC and transducer, with small numbers
YAML = """
seed: 1
__set_seed: !apply:torch.manual_seed [!ref <seed>]
d_model: 32
nhead: 4
output_neurons: 20
blank_index: 0

compute_features: !new:speechbrain.lobes.features.Fbank
    n_mels: 80

normalize: !new:speechbrain.processing.features.InputNormalization
    norm_type: global
    update_until_epoch: 4

CNN: !new:speechbrain.lobes.models.convolution.ConvolutionFrontEnd
    input_shape: (8, 10, 80)
    num_blocks: 2
    num_layers_per_block: 1
    out_channels: (8, 4)
    kernel_sizes: (3, 3)
    strides: (2, 2)
    residuals: (False, False)

Transformer: !new:speechbrain.lobes.models.transformer.TransformerASR.TransformerASR
    input_size: 80
    tgt_vocab: !ref <output_neurons>
    d_model: !ref <d_model>
    nhead: !ref <nhead>
    num_encoder_layers: 2
    num_decoder_layers: DECODER_LAYERS
    d_ffn: 32
    dropout: 0.1
    activation: !name:torch.nn.GELU
    encoder_module: ENCODER
    attention_type: RelPosMHAXL
    normalize_before: True
    causal: False

ctc_lin: !new:speechbrain.nnet.linear.Linear
    input_size: !ref <d_model>
    n_neurons: !ref <output_neurons>

log_softmax: !new:torch.nn.LogSoftmax
    dim: -1

ctc_cost: !name:speechbrain.nnet.losses.ctc_loss
    blank_index: !ref <blank_index>
    reduction: batchmean

opt_class: !name:torch.optim.Adam
    lr: 0.005
"""
TRANSFORMER = """
seq_lin: !new:speechbrain.nnet.linear.Linear
    input_size: !ref <d_model>
    n_neurons: !ref <output_neurons>

seq_cost: !name:speechbrain.nnet.losses.kldiv_loss
    label_smoothing: 0.1
    reduction: batchmean

search: !new:speechbrain.decoders.S2STransformerBeamSearcher
    modules: [!ref <Transformer>, !ref <seq_lin>]
    bos_index: 1
    eos_index: 2
    min_decode_ratio: 0.0
    max_decode_ratio: 0.5
    beam_size: 2
    using_eos_threshold: False
    length_normalization: True

modules:
    normalize: !ref <normalize>
    CNN: !ref <CNN>
    Transformer: !ref <Transformer>
    seq_lin: !ref <seq_lin>
    ctc_lin: !ref <ctc_lin>
"""
WRAPPED = """
enc: !new:speechbrain.lobes.models.transformer.TransformerASR.EncoderWrapper
    transformer: !ref <Transformer>
"""
CTC = """
modules:
    normalize: !ref <normalize>
    CNN: !ref <CNN>
    enc: !ref <enc>
    ctc_lin: !ref <ctc_lin>
"""
TRANSDUCER = """
chunks: !new:speechbrain.utils.dynamic_chunk_training.DynChunkTrainConfigRandomSampler
    chunkwise_prob: 1.0
    chunk_size_min: 2
    chunk_size_max: 4
    limited_left_context_prob: 0.5
    left_context_chunks_min: 1
    left_context_chunks_max: 2

emb: !new:speechbrain.nnet.embedding.Embedding
    num_embeddings: !ref <output_neurons>
    consider_as_one_hot: True
    blank_id: !ref <blank_index>

dec: !new:speechbrain.nnet.RNN.LSTM
    input_shape: [null, null, !ref <output_neurons> - 1]
    hidden_size: !ref <d_model>

Tjoint: !new:speechbrain.nnet.transducer.transducer_joint.Transducer_joint
    joint: sum
    nonlinearity: !name:torch.nn.GELU

# SpeechBrain's own, by numba, needs a GPU
transducer_cost: !name:torchaudio.functional.rnnt_loss
    blank: !ref <blank_index>

search: !new:speechbrain.decoders.transducer.TransducerBeamSearcher
    decode_network_lst: [!ref <emb>, !ref <dec>]
    tjoint: !ref <Tjoint>
    classifier_network: [!ref <ctc_lin>]
    blank_id: !ref <blank_index>
    beam_size: 1
    nbest: 1

modules:
    normalize: !ref <normalize>
    CNN: !ref <CNN>
    enc: !ref <enc>
    emb: !ref <emb>
    dec: !ref <dec>
    ctc_lin: !ref <ctc_lin>
"""


PAGE = (ROOT / "docs/swap.md").read_text(encoding="utf-8")
SECTION = PAGE.partition("SpeechBrain's own recipes")[2].partition("\n## ")[0]


def swapped(yaml):
    """What the page's section on SpeechBrain's recipes says to change."""
    lines = re.search(r"```yaml\n(.*?)```", SECTION, re.DOTALL)[1]
    there, mixer = lines.partition("\n")[::2]
    yaml = re.sub(r"Transformer: !new:\S+", re.sub(r"\s+#.*", "", there), yaml)
    return re.sub(r"    attention_type: .*\n", lambda _: mixer, yaml)


def test_the_page_names_what_must_go():
    theirs, ours = (
        inspect.signature(kind.__init__).parameters for kind in (TransformerASR, SummaryMixingASR)
    )
    gone = theirs.keys() - ours.keys()
    assert gone == {"attention_type", "max_length"}
    assert all(f"`{name}`" in SECTION for name in gone)


class Brain(sb.Brain):
    def encoded(self, batch):
        waveforms, lengths = batch.sig
        features = self.hparams.compute_features(waveforms)
        return self.modules.CNN(self.modules.normalize(features, lengths, epoch=1)), lengths

    def ctc(self, encoded, lengths, batch):
        scores = self.hparams.log_softmax(self.modules.ctc_lin(encoded))
        return self.hparams.ctc_cost(scores, batch.tokens.data, lengths, batch.tokens.lengths)


class TransformerBrain(Brain):
    def compute_forward(self, batch, stage):
        features, lengths = self.encoded(batch)
        encoded, decoded = self.modules.Transformer(features, batch.tokens_bos.data, lengths)
        said = None
        if stage == sb.Stage.TEST:
            said, _, _, _ = self.hparams.search(encoded.detach(), lengths)
        return encoded, decoded, lengths, said

    def compute_objectives(self, predictions, batch, stage):
        encoded, decoded, lengths, _ = predictions
        scores = self.hparams.log_softmax(self.modules.seq_lin(decoded))
        targets, target_lengths = batch.tokens_eos
        loss = self.hparams.seq_cost(scores, targets, length=target_lengths)
        return 0.3 * self.ctc(encoded, lengths, batch) + 0.7 * loss


class CTCBrain(Brain):
    def compute_forward(self, batch, stage):
        features, lengths = self.encoded(batch)
        encoded = self.modules.enc(features, lengths)
        scores = self.hparams.log_softmax(self.modules.ctc_lin(encoded))
        return encoded, lengths, sb.decoders.ctc_greedy_decode(scores, lengths, blank_id=0)

    def compute_objectives(self, predictions, batch, stage):
        encoded, lengths, _ = predictions
        return self.ctc(encoded, lengths, batch)


class TransducerBrain(Brain):
    def compute_forward(self, batch, stage):
        features, lengths = self.encoded(batch)
        chunks = self.hparams.chunks(stage)
        encoded = self.modules.enc(features, lengths, pad_idx=0, dynchunktrain_config=chunks)
        predicted, _ = self.modules.dec(self.modules.emb(batch.tokens_bos.data))
        joint = self.hparams.Tjoint(encoded.unsqueeze(2), predicted.unsqueeze(1))
        said = self.hparams.search(encoded)[0] if stage == sb.Stage.TEST else None
        return self.modules.ctc_lin(joint), lengths, said

    def compute_objectives(self, predictions, batch, stage):
        scores, lengths, _ = predictions
        tokens, token_lengths = batch.tokens
        frames = (lengths * scores.size(1)).round().int()
        counts = (token_lengths * tokens.size(1)).round().int()
        return self.hparams.transducer_cost(scores, tokens.int(), frames, counts)


def batch_of(size=3):
    torch.manual_seed(0)
    rows = []
    for i in range(size):
        tokens = torch.randint(3, 20, (4 + i,))
        before, after = torch.tensor([1]), torch.tensor([2])
        rows.append(
            {
                "id": str(i),
                "sig": 0.1 * torch.randn(8000 + 3200 * i),
                "tokens": tokens,
                "tokens_bos": torch.cat([before, tokens]),
                "tokens_eos": torch.cat([tokens, after]),
            }
        )
    return PaddedBatch(rows)


@pytest.mark.parametrize("encoder", ["conformer", "branchformer"])
@pytest.mark.parametrize(
    "brain, layers, yaml",
    [
        (TransformerBrain, 1, TRANSFORMER),
        (CTCBrain, 0, WRAPPED + CTC),
        (TransducerBrain, 0, WRAPPED + TRANSDUCER),
    ],
)
def test_a_recipe_trains_and_decodes_with_the_swap_of_the_readme(brain, layers, yaml, encoder):
    text = (YAML + yaml).replace("DECODER_LAYERS", str(layers)).replace("ENCODER", encoder)
    hparams = load_hyperpyyaml(swapped(text))
    mixers = [m for m in hparams["Transformer"].modules() if isinstance(m, SelectiveSummaryMixing)]
    assert len(mixers) == 2
    experiment = brain(hparams["modules"], hparams["opt_class"], hparams, {"device": "cpu"})
    before = [parameter.clone() for mixer in mixers for parameter in mixer.parameters()]
    batch, losses = batch_of(), []
    experiment.on_fit_start()
    experiment.modules.train()
    for _ in range(12):
        losses.append(float(experiment.fit_batch(batch)))
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])
    after = [parameter for mixer in mixers for parameter in mixer.parameters()]
    assert all(not torch.equal(old, new) for old, new in zip(before, after))
    experiment.modules.eval()
    with torch.no_grad():
        *_, said = experiment.compute_forward(batch, sb.Stage.TEST)
    assert len(said) == 3
