"""Classifier-free guidance: what a session would say without its conditions steers what it says.

A guided session owns two rows of state: its own slot, and the slot of its *twin*, whose keys, values and conditions are
the null ones. The twin hears what the session hears and says what the session says; its logits alone are its own. So
only the main transformer and the Depformer run it, behind the tick's rows; codec, token cache and sampling never do.

Source: Classifier-free guidance (Ho and Salimans, 2022); masks as in moshi 0.2.13 (`LMGen`).
"""

import dataclasses
import math
from typing import Final

import torch
from torch import Tensor

from serve_app.errors import ParameterRefused
from serve_app.model.embedding import ZERO_TOKEN
from serve_app.model.state import Rows

_NEVER_MASKED: Final = -1


@dataclasses.dataclass(frozen=True, slots=True)
class Guidance:
    """How each slot is guided, ``[slots + 1]`` each; kept at the session's own slot, not at its twin's.

    Attributes:
        coef: fp32, how far to go from the twin's logits to the row's own, and beyond; 1 changes nothing.
        no_text: bool, whether text is chosen from the row's own logits, and the twin hears no text.
        masked_until: int64, steps (beyond each stream's delay) that the twin hears nothing of; -1 for none.
    """

    coef: Tensor = dataclasses.field(metadata={"fresh": 1.0})
    no_text: Tensor
    masked_until: Tensor = dataclasses.field(metadata={"fresh": _NEVER_MASKED})

    @classmethod
    def empty(cls, slots: int, device: torch.device) -> "Guidance":
        """Nobody is guided."""
        return cls(
            torch.ones(slots + 1, device=device),
            torch.zeros(slots + 1, device=device, dtype=torch.bool),
            torch.full((slots + 1,), _NEVER_MASKED, device=device, dtype=torch.int64),
        )

    def set(self, slot: int, coef: float, *, no_text: bool = False, masked_until: int | None = None) -> None:
        """Take over what a session asked for. Host side, between ticks, after a reset of both slots.

        Raises:
            ParameterRefused: a strength that is not finite, or a negative number of steps.
        """
        if not math.isfinite(coef):
            raise ParameterRefused("cfg_coef", coef, "must be finite")
        if masked_until is not None and masked_until < 0:
            raise ParameterRefused("cfg_is_masked_until", masked_until, "must not be negative")
        self.coef[slot] = coef
        self.no_text[slot] = no_text
        self.masked_until[slot] = _NEVER_MASKED if masked_until is None else masked_until

    def twin_tokens(self, tokens: Tensor, offset: Tensor, lags: Tensor, rows: Rows) -> Tensor:
        """What the tick's twins hear.

        Args:
            tokens: ``int64[R, streams, T]``, what the rows hear at T steps.
            offset: ``int64[R]``, step number of the first of them.
            lags: ``int64[streams]``, delay of each stream.

        Returns:
            ``int64[N, streams, T]``.
        """
        assert rows.twins is not None
        of = rows.twins.of
        lag = lags[:, None]
        step = offset.index_select(0, of)[:, None, None] + torch.arange(tokens.shape[-1], device=tokens.device)
        until = self.masked_until.index_select(0, rows.slots).index_select(0, of)[:, None, None]
        unheard = step <= lag + until  # [N, streams, T]
        no_text = self.no_text.index_select(0, rows.slots).index_select(0, of)[:, None]
        unheard = torch.cat([unheard[:, :1] | no_text[..., None], unheard[:, 1:]], dim=1)
        # Initial tokens stay: the twin begins as everybody does.
        return torch.where(unheard & (step > lag), ZERO_TOKEN, tokens.index_select(0, of))

    def steer(self, logits: Tensor, rows: Rows, *, text: bool) -> Tensor:
        """``[R + N, V]`` to ``[R, V]``: away from the twins. A row without one keeps every bit."""
        twins = rows.twins
        if twins is None:
            return logits
        count, null = rows.slots.shape[0], twins.null
        if text:
            no_text = self.no_text.index_select(0, rows.slots)
            null = torch.where(no_text, torch.arange(count, device=null.device), null)
        own, against = logits[:count], logits.index_select(0, null)
        coef = self.coef.index_select(0, rows.slots)[:, None]
        # In the order and the dtype of the reference. Held against itself a row is itself, whatever its strength.
        return against + ((own - against) * coef).to(logits.dtype)
