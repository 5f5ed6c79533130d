"""Token mixers that SpeechBrain brings, made ready to be injected, and the absence of one."""

from speechbrain.nnet.attention import RelPosMHAXL, RoPEMHA
from speechbrain.nnet.hypermixing import HyperMixing
from torch import nn

from speechbrain_summarymixing.lobes.positions import SinePositions


def check_mixer(token_mixer):
    """Raises TypeError unless ``token_mixer`` is a callable, and no module, that makes mixers."""
    if isinstance(token_mixer, nn.Module):
        raise TypeError(
            f"token_mixer is a {type(token_mixer).__name__} module, which all layers would share: "
            "pass a callable that returns a new one (!name: in place of !new: in YAML)"
        )
    if not callable(token_mixer):
        raise TypeError(
            f"token_mixer is {token_mixer!r}, but must be a callable that returns a new module, "
            "such as functools.partial(SummaryMixing, d_model)"
        )


def mixer_name(make_mixer):
    """Returns the name of what makes mixers: of a class, a function or an object's class."""
    maker = getattr(make_mixer, "func", make_mixer)  # functools.partial's
    return getattr(maker, "__qualname__", type(maker).__qualname__)


def takes_relative_positions(mixer):
    """Whether a mixer is called with relative positions: its attribute of that name says."""
    return getattr(mixer, "takes_relative_positions", isinstance(mixer, RelPosMHAXL))


def has_positions(mixer):
    """Whether a mixer brings positions, so that sine positions are left out: its attribute says."""
    return getattr(mixer, "has_positions", isinstance(mixer, (RelPosMHAXL, RoPEMHA)))


def adds_nothing(mixer):
    """Whether a layer leaves a mixer and what belongs to it out: its attribute says."""
    return getattr(mixer, "adds_nothing", False)


class RelativeAttention(RelPosMHAXL):
    """SpeechBrain's relative attention, with positions that may tell left from right.

    Arguments
    ---------
    embed_dim : int
        Width D.
    num_heads : int
        Number of heads H.
    dropout : float
        Of the weights.
    signed : bool
        The encoder makes positions with the sign of the distance, as Transformer-XL's; False:
        SpeechBrain's, alike on both sides (speechbrain#3070).

    Reference: Transformer-XL, arXiv 1901.02860.

    Example
    -------
    >>> import torch
    >>> from speechbrain_summarymixing.lobes.positions import RelativePositions
    >>> x, positions = torch.rand(2, 50, 16), RelativePositions(16, signed=True)
    >>> output, weights = RelativeAttention(16, 4, signed=True)(x, x, x, positions(x))
    >>> output.shape
    torch.Size([2, 50, 16])
    """

    def __init__(self, embed_dim, num_heads, *, dropout=0.0, signed=False):
        super().__init__(embed_dim, num_heads, dropout)
        self.signed = signed


class LinearHyperMixing(HyperMixing):
    """SpeechBrain's multi-head HyperMixing, for any length and without a T x T tensor.

    SpeechBrain's returns zeros (B, T, T) in the place of attention's weights, and its positions
    end at max_length.

    Arguments
    ---------
    d_model : int
        Width D.
    hypernet_size : int
        Hidden width of the token-mixing MLP, over all heads.
    nhead : int
        Number of heads.
    tied : bool
        One generated matrix for both layers of the token-mixing MLP.

    Reference: HyperMixer, arXiv 2203.03691; in speech, arXiv 2305.18281.

    Example
    -------
    >>> import torch
    >>> output, weights = LinearHyperMixing(16, 32, nhead=4)(torch.rand(2, 50, 16))
    >>> output.shape, weights
    (torch.Size([2, 50, 16]), None)
    """

    def __init__(self, d_model, hypernet_size, *, nhead=8, tied=False):
        super().__init__(d_model, hypernet_size, tied=tied, num_heads=nhead, max_length=1)
        self.positional_encoding = SinePositions(d_model)

    def forward(
        self,
        query,
        key=None,
        value=None,
        attn_mask=None,
        key_padding_mask=None,
        pos_embs=None,
    ):
        """Mixes ``query`` (B, T, D); the call is that of SpeechBrain's attention.

        Raises
        ------
        ValueError
            If attn_mask is given: HyperMixing sees the whole sequence.
        """
        if attn_mask is not None:
            raise ValueError(
                f"attn_mask of shape {tuple(attn_mask.shape)} is given, but HyperMixing always "
                "sees the whole sequence: pass None, or take another mixer for a causal model"
            )
        # SpeechBrain's forward, less its zeros (B, T, T)
        padding = None if key_padding_mask is None else key_padding_mask.unsqueeze(-1)  # (B, T, 1)
        x = query if padding is None else query.masked_fill(padding, 0.0)
        first, second = self.hyper(x + self.positional_encoding(x))  # (B, H, T, K / H)
        if padding is not None:
            first = first.masked_fill(padding.unsqueeze(1), 0.0)
            second = second.masked_fill(padding.unsqueeze(1), 0.0)
        heads = x.unflatten(2, (self.num_heads, -1)).permute(0, 2, 3, 1)  # (B, H, D / H, T)
        mixed = self.activation(heads @ first) @ second.transpose(2, 3)  # (B, H, D / H, T)
        return self.layer_norm(mixed.flatten(1, 2).transpose(1, 2)), None


class NoMixing(nn.Module):
    """No token mixer: a Branchformer keeps its convolution branch alone, a Conformer its module.

    Reference: "Branchformer, CNN only" of arXiv 2307.07421.
    """

    adds_nothing = supports_window = supports_streaming = True

    def initial_state(self, window, batch, device=None):
        """Returns the nothing that is kept of a stream."""
        return ()

    def forward(
        self, query, key=None, value=None, attn_mask=None, key_padding_mask=None, pos_embs=None
    ):
        """Returns zeros like ``query`` (B, T, D), one number of memory, and no weights."""
        return query.new_zeros(()).expand_as(query), None
