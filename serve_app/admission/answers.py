"""The question that opens a session, and its three answers. Plain values: they cross processes."""

import dataclasses
from typing import NewType

from serve_app.errors import ChorusError
from serve_app.units import SessionId

EngineName = NewType("EngineName", str)
"""Names one engine as long as it lives; its replacement has another name."""


@dataclasses.dataclass(frozen=True, slots=True)
class AdmissionRequest:
    """What a gateway asks, and asks again until it is not told to wait.

    Attributes:
        session: chosen by the gateway, random; asking again with it is asking about the same session.
        tenant: as the gate said.
        model: by name.
        rows: of the batch; 2 under guidance.
        parameters: names of those that the client set.
        waited_s: how long this caller has waited already, as its gateway counts: a successor of the authority that told
            it to wait puts it where it was among its tenant's.
    """

    session: SessionId
    tenant: str
    model: str
    rows: int = 1
    parameters: frozenset[str] = frozenset()
    waited_s: float = 0.0


@dataclasses.dataclass(frozen=True, slots=True)
class Granted:
    """Rows are set aside at one engine.

    Attributes:
        request: what was asked.
        engine: where to open.
        confirm_s: open and confirm within this, or the rows go to somebody else.
        longest_s: end the session after this.
    """

    request: AdmissionRequest
    engine: EngineName
    confirm_s: float
    longest_s: float


@dataclasses.dataclass(frozen=True, slots=True)
class Wait:
    """No room yet.

    Attributes:
        place: how many would be let in until this one is, itself included, if nobody else came.
        eta_s: when that may be; None when nothing is known that could free a row.
        ask_again_s: who has not asked for `Rules.abandon_s` has left the queue; ask about this often.
    """

    place: int
    eta_s: float | None
    ask_again_s: float


@dataclasses.dataclass(frozen=True, slots=True)
class Refused:
    """No, for a reason that knows its HTTP status, whether to try again, and when."""

    error: ChorusError


Answer = Granted | Wait | Refused


def refuses(answer: Answer, kind: type[ChorusError]) -> bool:
    """Whether it is a no for a reason of this kind."""
    return isinstance(answer, Refused) and isinstance(answer.error, kind)
