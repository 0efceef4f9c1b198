"""What a session chose about the model: texts or vectors to what is added to every step or attended to in every step.

Everything here is computed once, when a session opens, in fp32 whatever the model's dtype is, and then lies in the
session's slot. Parameter names are those of Kyutai's checkpoints (``condition_provider.*``).

Source: behaviour of moshi 0.2.13 (`ConditionProvider`, `ConditionFuser`).
"""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from serve_app.errors import ParameterRefused
from serve_app.model.condition_config import ConditionerConfig, FuserConfig
from serve_app.model.rope import sinusoid

_POSITIONS_PERIOD: Final = 10_000.0


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Vectors:
    """A condition that is given as vectors: ``fp32[T, dim]``, and ``bool[T]``: which of them count."""

    values: Tensor
    mask: Tensor

    @classmethod
    def of(cls, values: Tensor) -> "Vectors":
        """All of them count."""
        return cls(values, torch.ones(values.shape[0], dtype=torch.bool, device=values.device))


Choice = str | Vectors | None
"""One condition of one session; None is nothing chosen, which a model knows as well."""
Choices = Mapping[str, Choice]


@dataclasses.dataclass(frozen=True, slots=True)
class Conditions:
    """Conditions of all slots that are added to the input: ``sum [slots + 1, 1, dim]`` in the LM's dtype, 0 if none."""

    sum: Tensor

    @classmethod
    def empty(cls, slots: int, dim: int, device: torch.device, dtype: torch.dtype) -> "Conditions":
        return cls(torch.zeros(slots + 1, 1, dim, device=device, dtype=dtype))


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Fused:
    """Conditions of one session: ``sum fp32[1, dim]`` and ``cross fp32[L, dim]``, None where the model has none."""

    sum: Tensor | None
    cross: Tensor | None


def dropped(choices: Choices) -> dict[str, Choice]:
    """The same conditions with nothing chosen: vectors keep their number, all of them masked."""
    return {
        name: Vectors(torch.zeros_like(choice.values), torch.zeros_like(choice.mask))
        if isinstance(choice, Vectors)
        else None
        for name, choice in choices.items()
    }


class Conditioner(nn.Module):
    """One condition: a table or given vectors, a projection to the model's dimension, what stands for the masked."""

    def __init__(self, config: ConditionerConfig, dim: int) -> None:
        super().__init__()
        self.config = config
        if config.kind == "lut":
            self.embed = nn.Embedding(config.n_bins + 1, config.dim)
        self.output_proj = nn.Linear(config.dim, dim, bias=False) if config.project else nn.Identity()
        self.learnt_padding: nn.Parameter | None = None
        if config.learn_padding:
            self.learnt_padding = nn.Parameter(0.2 * torch.randn(1, 1, dim))

    def forward(self, choice: Choice) -> Tensor:
        """``fp32[T, dim]``.

        Raises:
            ParameterRefused: a text that the model does not know, a text for vectors or the reverse, a wrong size.
        """
        given = self._look_up(choice) if self.config.kind == "lut" else self._take(choice)
        y = given.values
        if isinstance(self.output_proj, nn.Linear):
            y = F.linear(y, self.output_proj.weight.float())
        kept = given.mask.to(y.device, torch.float32)[:, None]
        y = y * kept
        return y if self.learnt_padding is None else y + self.learnt_padding[0].float() * (1 - kept)

    def _look_up(self, choice: Choice) -> Vectors:
        c = self.config
        weight = self.embed.weight
        if choice is None:
            index = c.n_bins
        elif not isinstance(choice, str):
            raise ParameterRefused(f"condition.{c.name}", type(choice).__name__, "is chosen by a text")
        elif c.possible_values is None:
            index = int(hashlib.sha256(choice.encode()).hexdigest(), 16) % c.n_bins
        elif choice in c.possible_values:
            index = c.possible_values.index(choice)
        else:
            raise ParameterRefused(f"condition.{c.name}", choice, f"must be one of {', '.join(c.possible_values)}")
        mask = torch.tensor([choice is not None], device=weight.device)
        return Vectors(weight[index : index + 1].float(), mask)

    def _take(self, choice: Choice) -> Vectors:
        c = self.config
        device = next(self.parameters()).device if list(self.parameters()) else None
        if choice is None:
            choice = Vectors(torch.zeros(1, c.dim), torch.zeros(1, dtype=torch.bool))
        if not isinstance(choice, Vectors):
            raise ParameterRefused(f"condition.{c.name}", choice, "is given by vectors, not by a text")
        values, mask = choice.values, choice.mask
        if values.ndim != 2 or values.shape[1] != c.dim or mask.shape != values.shape[:1] or not len(values):
            raise ParameterRefused(f"condition.{c.name}", list(values.shape), f"must be vectors of {c.dim} values")
        if not bool(torch.isfinite(values).all()):
            raise ParameterRefused(f"condition.{c.name}", list(values.shape), "must be finite")
        return Vectors(values.to(device, torch.float32), mask.to(device))


class Conditioning(nn.Module):
    """All conditions of a model, and where they go."""

    def __init__(self, conditioners: Sequence[ConditionerConfig], fuser: FuserConfig, dim: int) -> None:
        super().__init__()
        self.fuser = fuser
        self.conditioners = nn.ModuleDict({config.name: Conditioner(config, dim) for config in conditioners})

    @property
    def names(self) -> tuple[str, ...]:
        """Conditions that reach the model."""
        return (*self.fuser.sum, *self.fuser.cross)

    def possible_values(self) -> dict[str, tuple[str, ...] | None]:
        """Texts that each lookup condition knows, in the order of its table; None where any text will do."""
        configs = {name: self._conditioner(name).config for name in self.names}
        return {name: config.possible_values for name, config in configs.items() if config.kind == "lut"}

    @torch.no_grad()
    def fuse(self, choices: Choices) -> Fused:
        """Conditions of one session; what is not chosen counts as None. Host side: reads texts.

        Raises:
            ParameterRefused: an unknown name or value; says which there are.
        """
        for name, choice in choices.items():
            if name not in self.names:
                known = ", ".join(self.names) or "none"
                raise ParameterRefused(f"condition.{name}", choice, f"no such condition; there are: {known}")
        total: Tensor | None = None
        for name in self.fuser.sum:
            part = self._conditioner(name)(choices.get(name))
            if len(part) != 1:
                raise ParameterRefused(f"condition.{name}", f"{len(part)} vectors", "must be one vector")
            total = part if total is None else total + part
        cross = None
        if self.fuser.cross:
            cross = torch.cat([self._conditioner(name)(choices.get(name)) for name in self.fuser.cross])
            if self.fuser.cross_positions:
                start = torch.zeros(1, device=cross.device, dtype=torch.int64)
                positions = sinusoid(start, len(cross), cross.shape[1], _POSITIONS_PERIOD, torch.float32)[0]
                cross = cross + self.fuser.cross_positions * positions
        return Fused(total, cross)

    def _conditioner(self, name: str) -> Conditioner:
        conditioner = self.conditioners[name]
        assert isinstance(conditioner, Conditioner)
        return conditioner
