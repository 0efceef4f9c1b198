"""Tenants: who pays, and what each may have."""

import dataclasses
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from serve_app.errors import Forbidden, NotAllowed

NAME: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
"""No dots, slashes or capitals: a name may stand in a path, a label or a file."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Tenant:
    """What one tenant may have. Whoever reads it from outside checks the ranges first.

    Attributes:
        name: as in `NAME`.
        weight: share of a full cluster, relative to the others'.
        concurrent_sessions: sessions at a time, those that wait included, so that nobody fills the queue.
        sessions_per_minute: new sessions, with one minute's worth at once at most.
        audio_s_per_day: seconds of conversation from midnight to midnight UTC.
        longest_s: of one session.
        models: which may be asked for; None is every one.
        parameters: of a session that may be set; None is every one.
        origins: web pages that may connect with a ticket of this tenant, lower case, without a slash at the end.
    """

    name: str
    weight: float = 1.0
    concurrent_sessions: int = 4
    sessions_per_minute: float = 30.0
    audio_s_per_day: float = 36_000.0
    longest_s: float = 3_600.0
    models: frozenset[str] | None = None
    parameters: frozenset[str] | None = None
    origins: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        assert NAME.fullmatch(self.name), self.name
        assert 0 < self.weight < math.inf, self.weight

    def may_use(self, model: str) -> bool:
        """Whether this model is one of its."""
        return self.models is None or model in self.models

    def permit(self, model: str, parameters: Iterable[str]) -> None:
        """Let a session of this kind pass.

        Raises:
            Forbidden: names the model or the parameter.
        """
        if not self.may_use(model):
            raise Forbidden(f"model {model[:64]!r}")
        if self.parameters is not None:
            refused = sorted(name for name in parameters if name not in self.parameters)
            if refused:
                raise Forbidden(f"parameter {refused[0][:64]!r}")

    def permit_origin(self, origin: str | None) -> None:
        """Let a page of this origin pass. Programs send none (None) and are judged by their key alone.

        Raises:
            Forbidden: a page of somebody else.
        """
        if origin is not None and origin.rstrip("/").lower() not in self.origins:
            raise Forbidden("a page of another origin")


class Tenants:
    """All tenants as of one reading of the file. Immutable: a reload makes another."""

    def __init__(self, tenants: Iterable[Tenant] = ()) -> None:
        self._by_name: Mapping[str, Tenant] = {tenant.name: tenant for tenant in tenants}

    def __iter__(self) -> Iterator[Tenant]:
        return iter(self._by_name.values())

    def __len__(self) -> int:
        return len(self._by_name)

    def get(self, name: str) -> Tenant | None:
        """The tenant of that name, if there is one now."""
        return self._by_name.get(name)

    def require(self, name: str) -> Tenant:
        """The tenant of that name.

        Raises:
            NotAllowed: there is none, or no longer.
        """
        tenant = self._by_name.get(name)
        if tenant is None:
            raise NotAllowed("no such tenant")
        return tenant
