"""What an engine answers to a call for a slot. Plain values: they cross processes."""

import dataclasses

from serve_app.errors import ChorusError
from serve_app.link.port import Grant
from serve_app.serving.directory import TextModel
from serve_app.units import SessionId


@dataclasses.dataclass(frozen=True, slots=True)
class Admitted:
    """Who comes for a slot, where an authority let it in. The engine reports it, so that a successor knows.

    Attributes:
        engine: where its rows are set aside.
    """

    session: SessionId
    tenant: str
    engine: str


@dataclasses.dataclass(frozen=True, slots=True)
class Granted:
    """A slot.

    Attributes:
        grant: what attaches to it over the link.
        text_model: what the text tokens of this engine mean; None where it writes none.
    """

    grant: Grant
    text_model: TextModel | None = None


Answer = Granted | ChorusError
"""What a call for a slot yields first, and last."""
