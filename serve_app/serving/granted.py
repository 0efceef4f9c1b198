"""What an engine answers to a call for a slot. Plain values: they cross processes."""

import dataclasses
import math

from serve_app.errors import ChorusError
from serve_app.link.port import Grant
from serve_app.serving.directory import TextModel
from serve_app.serving.resuming import WayBack
from serve_app.units import SessionId


@dataclasses.dataclass(frozen=True, slots=True)
class Admitted:
    """Who comes for a slot, where an authority let it in. The engine reports it, so that a successor knows.

    Attributes:
        engine: where its rows are set aside.
        longest_s: that its session may last.
    """

    session: SessionId
    tenant: str
    engine: str
    longest_s: float = math.inf


@dataclasses.dataclass(frozen=True, slots=True)
class Past:
    """What a gateway has to know of a session that comes to it.

    Attributes:
        caller: whom an authority let in; None where there is none.
        lived_s: since it began, the time without a client included.
    """

    caller: Admitted | None
    lived_s: float


@dataclasses.dataclass(frozen=True, slots=True)
class Granted:
    """A slot.

    Attributes:
        grant: what attaches to it over the link.
        text_model: what the text tokens of this engine mean; None where it writes none.
        way_back: for its client, where the slot is kept when the client is cut off.
        past: of a session that its client came back to; None for a new one.
    """

    grant: Grant
    text_model: TextModel | None = None
    way_back: WayBack | None = None
    past: Past | None = None


Answer = Granted | ChorusError
"""What a call for a slot yields first, and last."""
