import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from speechbrain.lobes.models.transformer.Transformer import TransformerDecoder, get_lookahead_mask
from speechbrain.lobes.models.transformer.TransformerASR import TransformerASR
from torch import nn

from speechbrain_summarymixing.lobes.asr import SummaryMixingASR
from speechbrain_summarymixing.lobes.stepping_decoder import SteppingDecoder
from speechbrain_summarymixing.nnet.summary_mixing import SummaryMixing

D = 16


@settings(max_examples=12, deadline=None)
@given(
    layers=st.integers(1, 3),
    length=st.integers(2, 30),
    beams=st.integers(1, 3),
    frames=st.lists(st.integers(1, 20), min_size=1, max_size=3),
    normalize_before=st.booleans(),
    seed=st.integers(0, 99),
)
def test_steps_equal_speechbrains_decoder(layers, length, beams, frames, normalize_before, seed):
    torch.manual_seed(seed)
    net = SteppingDecoder(layers, D, nhead=4, d_ffn=24, normalize_before=normalize_before)
    plain = TransformerDecoder(
        layers, 4, 24, d_model=D, activation=nn.GELU, normalize_before=normalize_before
    )
    for parameter in plain.parameters():  # biases and norms away from their special values
        nn.init.normal_(parameter, std=0.3)
    assert [*net.state_dict()] == [*plain.state_dict()]  # the order of an optimiser's state
    net.load_state_dict(plain.state_dict())
    net, plain = net.double().eval(), plain.double().eval()
    tokens = torch.randn(beams * len(frames), length, D).double()
    memory = torch.randn(len(frames), max(frames), D).double()
    padding = torch.arange(max(frames)) >= torch.tensor(frames)[:, None]
    order = torch.randint(beams, (len(frames), beams)) + beams * torch.arange(len(frames))[:, None]
    with torch.no_grad():
        state = net.start(memory, padding, beams)
        for token in tokens[:, :-1].split(1, 1):
            state = net.step(token, state)[2]
        prefixes = torch.cat([tokens[order.flatten(), :-1], tokens[:, -1:]], 1)
        output, weights, state = net.step(tokens[:, -1:], state.permute(order.flatten()))
        causal = get_lookahead_mask(prefixes).double()
        repeated, mask = (x.repeat_interleave(beams, 0) for x in (memory, padding))
        whole, _, whole_weights = plain(prefixes, repeated, causal, memory_key_padding_mask=mask)
        torch.testing.assert_close(output, whole[:, -1:], atol=1e-10, rtol=1e-10)
        torch.testing.assert_close(weights, whole_weights[-1][:, -1:], atol=1e-10, rtol=1e-10)
    assert state.tokens == length


def test_a_model_has_it_with_the_initial_values_of_speechbrains_decoder(monkeypatch):
    made = []
    build = TransformerASR.__init__

    def noted(net, *arguments, **options):
        build(net, *arguments, **options)
        made.append(net.decoder)

    monkeypatch.setattr(TransformerASR, "__init__", noted)
    drawn, draw = [], nn.init.xavier_normal_
    monkeypatch.setattr(nn.init, "xavier_normal_", lambda x: drawn.append(x.is_meta) or draw(x))
    net = SummaryMixingASR(
        30, 12, token_mixer=lambda: SummaryMixing(D), d_model=D, nhead=2, num_encoder_layers=1,
        num_decoder_layers=2, d_ffn=24, csgu_linear_units=24, kernel_size=3,
    )  # fmt: skip
    assert isinstance(net.decoder, SteppingDecoder) and made[0] is not net.decoder
    pairs = list(zip(net.decoder.named_parameters(), made[0].named_parameters(), strict=True))
    assert pairs and all(name == theirs for (name, _), (theirs, _) in pairs)
    assert all(torch.equal(parameter, expected) for (_, parameter), (_, expected) in pairs)
    assert drawn and not any(drawn)  # of what has no values torch's compiler would be imported
