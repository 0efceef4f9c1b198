"""A language model whose weights are written down instead of trained: it says again what it heard a second ago.

The user's codes enter the residual stream as their bits, one sign per bit, each codebook in channels of its own. One
attention layer copies those channels from `LAG` steps ago: queries and keys are constant, and the rotary positions
alone make their product greatest at that age. The Depformer's input for codebook k picks k's copied bits, its head
compares them with the bits of every code. Text is written by linear readouts from three things: how much the codes of
the last steps sound like speech, whether the last token says that somebody speaks, and which phrase it belongs to.

    channels of the residual stream
    | bits of the user's codes, 10 per codebook | one, start, state, evidence, smoothed evidence, a link each |

Copied bits are written over the user's own channels, `COPY` times as loud: the current code is the noise that the
readout tolerates. Heads copy six codebooks each, a last head averages the evidence over the latest steps.
"""

import dataclasses
import math
from typing import Final

import torch
from torch import Tensor

from serve_app.demo.phrases import QUIET, SPEAKING, TEXT_CARD, Phrases
from serve_app.model.transformer import gated_hidden

LAG: Final = 12
"""Steps from hearing a code to saying it: 0.96 s."""
CONTEXT: Final = 50
CARD: Final = 1_024
BITS: Final = 10
HEAD_DIM: Final = 64
COPIES_PER_HEAD: Final = HEAD_DIM // BITS
MAX_PERIOD: Final = 10_000.0

COPY: Final = 8.0
ONE: Final = 64.0  # the constant channel: by far the greatest, so that the norm is nearly the same at every step
PAIRS: Final = 5  # rotary pairs that carry the lag
FIRST_PAIR: Final = 4.0  # weight of the first: it alone turns exactly one radian a step, so it is exact at any offset
PEAK: Final = 200.0  # attention logit at the lag; the next best age has 0.70 of it (0.74 at offset 10 million)
START_SHARE: Final = 0.85  # of PEAK: the first step's logit at any age, above every age but the lag
CODE_LOGIT: Final = 12.0  # gain of a code's logit per bit: the nearest other code is 24 below
LINK_LOGIT: Final = 2_000.0
STATE_LOGIT: Final = 300.0
EVIDENCE_LOGIT: Final = 250.0  # how sharp the thresholds are: sampling must not write for a whim
NEVER_LOGIT: Final = 600.0


@dataclasses.dataclass(frozen=True)
class Ear:
    """What tells speech from silence.

    Attributes:
        weights: ``[codebooks, CARD]``, evidence for speech of each code, about -1 to 1 when summed over codebooks.
        smoothing: attention logit per step of age of the averaging head.
        begin, end: thresholds of the smoothed evidence between which the state stays as it is.
    """

    weights: Tensor
    smoothing: float = 1.0
    begin: float = 0.25
    end: float = -0.25

    @classmethod
    def deaf(cls, codebooks: int) -> "Ear":
        """Hears silence always."""
        return cls(torch.full((codebooks, CARD), -1.0 / codebooks))


@dataclasses.dataclass(frozen=True)
class Channels:
    """Where things are in the residual stream of ``dim`` channels."""

    codebooks: int
    links: int

    @property
    def heads(self) -> int:
        return -(-self.codebooks // COPIES_PER_HEAD) + 1

    @property
    def dim(self) -> int:
        needed = self.codebooks * BITS + 5 + self.links
        assert needed <= self.heads * HEAD_DIM, "no channel left"
        return self.heads * HEAD_DIM

    def bits(self, codebook: int) -> slice:
        return slice(codebook * BITS, (codebook + 1) * BITS)

    @property
    def one(self) -> int:
        return self.codebooks * BITS

    @property
    def start(self) -> int:
        return self.one + 1

    @property
    def state(self) -> int:
        return self.one + 2

    @property
    def evidence(self) -> int:
        return self.one + 3

    @property
    def smoothed(self) -> int:
        return self.one + 4

    def link(self, number: int) -> int:
        return self.one + 5 + number


def config(codebooks: int, phrases: Phrases) -> dict[str, object]:
    """The language model's part of config.json."""
    channels = Channels(codebooks, len(phrases.links))
    own = [0] + [1] * (codebooks - 1)
    return {
        "dim": channels.dim,
        "text_card": TEXT_CARD,
        "existing_text_padding_id": QUIET,
        "n_q": 2 * codebooks,
        "dep_q": codebooks,
        "card": CARD,
        "num_heads": channels.heads,
        "num_layers": 1,
        "hidden_scale": 1,
        "causal": True,
        "layer_scale": None,
        "context": CONTEXT,
        "max_period": MAX_PERIOD,
        "gating": "silu",
        "norm": "rms_norm_f32",
        "positional_embedding": "rope",
        "depformer_dim": _DEPTH_DIM,
        "depformer_dim_feedforward": _DEPTH_DIM,
        "depformer_num_heads": 1,
        "depformer_num_layers": 1,
        "depformer_layer_scale": None,
        "depformer_multi_linear": True,
        "depformer_context": codebooks,
        "depformer_gating": "silu",
        "depformer_pos_emb": "none",
        "depformer_weights_per_step": True,
        "delays": [0, *own, *own],
    }


_DEPTH_DIM: Final = 16


def weights(codebooks: int, phrases: Phrases, ear: Ear, silence: Tensor) -> dict[str, Tensor]:
    """Every tensor of the model, fp32, under the names of the published files.

    Args:
        silence: ``int64[codebooks]``, codes of silence: what is said before there is anything to repeat.
    """
    channels = Channels(codebooks, len(phrases.links))
    tensors = {f"transformer.{key}": value for key, value in _attention(channels, ear).items()}
    tensors["out_norm.alpha"] = torch.ones(1, 1, channels.dim)
    tensors |= _inputs(channels, phrases, ear, silence)
    tensors["text_linear.weight"] = _text_readout(channels, phrases, ear)
    return tensors | _depformer(channels)


def signs(card: int = CARD) -> Tensor:
    """The bits of every code as -1 and 1, ``[card, BITS]``."""
    bits = torch.arange(card)[:, None] >> torch.arange(BITS)
    return (bits & 1).float() * 2 - 1


def usual_norm(channels: Channels) -> float:
    """Root mean square of the residual stream, before and after attention alike: the constant channel rules it."""
    return ONE / math.sqrt(channels.dim)


def _inputs(channels: Channels, phrases: Phrases, ear: Ear, silence: Tensor) -> dict[str, Tensor]:
    """Embeddings: the user's codes as bits and evidence, its own codes as nothing, text as state and links."""
    tensors: dict[str, Tensor] = {}
    for codebook in range(channels.codebooks):
        tensors[f"emb.{codebook}.weight"] = torch.zeros(CARD + 1, channels.dim)
        heard = torch.zeros(CARD + 1, channels.dim)
        heard[:CARD, channels.bits(codebook)] = signs()
        heard[:CARD, channels.evidence] = ear.weights[codebook]
        heard[CARD] = heard[silence[codebook]]  # before the first code there was silence
        tensors[f"emb.{channels.codebooks + codebook}.weight"] = heard
    text = torch.zeros(TEXT_CARD + 1, channels.dim)
    text[:TEXT_CARD, channels.one] = ONE
    text[TEXT_CARD, channels.start] = ONE  # the first step's text: its key must not turn with its age
    text[:, channels.state] = -1.0
    for token in (SPEAKING, *(token for phrase in phrases.beginnings for token in phrase)):
        text[token, channels.state] = 1.0
    for number, (token, _) in enumerate(phrases.links):
        text[token, channels.link(number)] = 1.0
    tensors["text_emb.weight"] = text
    return tensors


def _attention(channels: Channels, ear: Ear) -> dict[str, Tensor]:
    """The layer: heads that look `LAG` steps back, and one that looks at the latest steps."""
    dim, norm = channels.dim, usual_norm(channels)
    one = ONE / norm  # the constant channel after the norm
    query, key, value, out = (torch.zeros(dim, dim) for _ in range(4))
    share = torch.ones(PAIRS)
    share[0] = FIRST_PAIR
    share /= share.sum()
    turn = torch.exp(torch.arange(HEAD_DIM // 2) * (-math.log(MAX_PERIOD) * 2 / HEAD_DIM))  # radians a step
    unit = math.sqrt(HEAD_DIM)  # undoes the scaling of attention logits
    # A step generates the tokens of the next one, so what it copies is LAG - 1 steps old.
    angle = turn[:PAIRS] * (LAG - 1)
    for head in range(channels.heads):
        first = head * HEAD_DIM
        pairs = first + 2 * torch.arange(PAIRS)
        if head < channels.heads - 1:
            size = torch.sqrt(PEAK * unit * share)
            query[pairs, channels.one] = size * torch.cos(angle) / one
            query[pairs + 1, channels.one] = -size * torch.sin(angle) / one
            key[pairs, channels.one] = size / one
            # The slowest pair hardly turns: it tells the first step from all others at any age within the context.
            slow = first + HEAD_DIM - 2
            size_start = math.sqrt(START_SHARE * PEAK * unit)
            query[slow, channels.one] = size_start / one
            key[slow, channels.start] = size_start / one
            for copy in range(COPIES_PER_HEAD):
                codebook = head * COPIES_PER_HEAD + copy
                if codebook < channels.codebooks:
                    rows = torch.arange(BITS) + first + copy * BITS
                    columns = torch.arange(BITS) + channels.bits(codebook).start
                    value[rows, columns] = norm
                    out[columns, rows] = COPY
        else:
            # A pair that turns slowly a quarter turn apart falls linearly with age.
            pair = first + 2 * _SMOOTH_PAIR
            size = torch.sqrt(ear.smoothing * unit / turn[_SMOOTH_PAIR])
            query[pair + 1, channels.one] = size / one
            key[pair, channels.one] = key[pair, channels.start] = size / one
            value[first, channels.evidence] = norm
            out[channels.smoothed, first] = 1.0
    hidden = gated_hidden(dim, dim)
    prefix = "layers.0"
    return {
        f"{prefix}.self_attn.in_proj_weight": torch.cat([query, key, value]),
        f"{prefix}.self_attn.out_proj.weight": out,
        f"{prefix}.norm1.alpha": torch.ones(1, 1, dim),
        f"{prefix}.norm2.alpha": torch.ones(1, 1, dim),
        f"{prefix}.gating.linear_in.weight": torch.zeros(2 * hidden, dim),
        f"{prefix}.gating.linear_out.weight": torch.zeros(dim, hidden),
    }


_SMOOTH_PAIR: Final = 18  # turns 0.0056 radians a step: sin(age * turn) is age * turn within the context


def _text_readout(channels: Channels, phrases: Phrases, ear: Ear) -> Tensor:
    """``[TEXT_CARD, dim]``: what the next text token is.

    With state s (1 while somebody speaks) and evidence e: quiet stays quiet with -s, speaking stays speaking with s, a
    phrase begins with -s + (e - begin) and ends with s + (end - e). A link outbids all of it.
    """
    norm = usual_norm(channels)
    readout = torch.zeros(TEXT_CARD, channels.dim)
    readout[:, channels.one] = -NEVER_LOGIT * norm / ONE
    firsts = [phrase[0] for phrase in phrases.beginnings]
    for token, state, slope, threshold in (
        (QUIET, -1.0, 0.0, 0.0),
        (SPEAKING, 1.0, 0.0, 0.0),
        (phrases.ending, 1.0, -1.0, ear.end),
        *((token, -1.0, 1.0, ear.begin) for token in firsts),
    ):
        readout[token, channels.state] = state * STATE_LOGIT * norm
        readout[token, channels.smoothed] = slope * EVIDENCE_LOGIT * norm
        readout[token, channels.one] = -slope * threshold * EVIDENCE_LOGIT * norm / ONE
    for number, (_, successor) in enumerate(phrases.links):
        readout[successor, channels.link(number)] = LINK_LOGIT * norm
    # The first step has no constant channel: what it writes is nothing.
    readout[QUIET, channels.start] = NEVER_LOGIT * norm / ONE
    return readout


def _depformer(channels: Channels) -> dict[str, Tensor]:
    """One layer that adds nothing; the inputs pick a codebook's copied bits, the heads read the code."""
    codebooks, dim, depth = channels.codebooks, channels.dim, _DEPTH_DIM
    hidden = gated_hidden(depth, depth)
    layer = "depformer.layers.0"
    tensors = {
        f"{layer}.self_attn.in_proj_weight": torch.zeros(codebooks * 3 * depth, depth),
        f"{layer}.self_attn.out_proj.weight": torch.zeros(codebooks * depth, depth),
        f"{layer}.norm1.alpha": torch.ones(1, 1, depth),
        f"{layer}.norm2.alpha": torch.ones(1, 1, depth),
        "depformer_text_emb.weight": torch.zeros(TEXT_CARD + 1, depth),
    }
    for codebook in range(codebooks):
        pick = torch.zeros(depth, dim)
        pick[torch.arange(BITS), torch.arange(BITS) + channels.bits(codebook).start] = usual_norm(channels) / COPY
        tensors[f"depformer_in.{codebook}.weight"] = pick
        tensors[f"linears.{codebook}.weight"] = torch.zeros(CARD, depth)
        tensors[f"linears.{codebook}.weight"][:, :BITS] = CODE_LOGIT * signs()
        tensors[f"{layer}.gating.{codebook}.linear_in.weight"] = torch.zeros(2 * hidden, depth)
        tensors[f"{layer}.gating.{codebook}.linear_out.weight"] = torch.zeros(depth, hidden)
        if codebook:
            tensors[f"depformer_emb.{codebook - 1}.weight"] = torch.zeros(CARD + 1, depth)
    return tensors
