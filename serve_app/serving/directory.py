"""Which engines live, what they are and how busy: told by those of every model, asked by every gateway, once a second.

Gateways never ask an engine itself: every call on an engine's handle takes one of its slots.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Final

from serve_app.admission.answers import EngineName
from serve_app.admission.views import EngineView, LiveSession
from serve_app.config import ENGINE_APPLICATION
from serve_app.serving.tick_trace import EngineTicks
from serve_app.spec import Offer

EXPIRY_S: Final = 5.0
HEARTBEAT_S: Final = 1.0


@dataclasses.dataclass(frozen=True, slots=True)
class TextModel:
    """Which text model an engine writes with, and which of its tokens say nothing there.

    Attributes:
        digest: of the SentencePiece model's bytes; ask the directory for them.
        silent: padding and end of padding, as the checkpoint numbers them.
    """

    digest: str
    silent: tuple[int, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Orders:
    """What the directory answers to a card.

    Attributes:
        drain: the whole deployment goes down.
        offer_text_model: the directory has no bytes for the card's text model.
        offer_ticks: somebody asks for the last ticks.
    """

    drain: bool
    offer_text_model: bool
    offer_ticks: bool


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EngineCard:
    """What one engine says about itself. Plain values: it crosses processes.

    Attributes:
        engine: name of the replica.
        address: where its link listens.
        slots, used: seats in all, and those leased or live.
        rows, rows_used: rows of the batch, of which a guided session takes two.
        offer: what sessions may ask for.
        draining, healthy: whether it takes new sessions, and whether its loop works.
        late: its ticks miss their frames' deadlines: no new sessions until they do not.
        application: of Ray Serve, where its slots are asked for. One application, one model.
        model, device, dtype: what it runs.
        state_bytes_per_slot: memory of one conversation.
        process_bytes: resident memory of the engine's process.
        dep_q: codes the model says per step; 0 where there is none.
        codebook_bits: bits of one code.
        stage_ms: stage to (p50, p99) of one tick, over the last ticks.
        frame_ms: stage to mean time per frame, over the last ticks: what a stage took, by the rows that it took.
        rows_per_tick: mean over the last ticks.
        versions: package to version.
        text_model: what its text tokens mean; None where it writes none.
        counters: name to count since the start.
        leaves_in_s: when it goes, where it was replaced; its sessions are ended then.
        complaints: what in Ray's settings would cut a session.
    """

    engine: str
    address: str
    slots: int
    used: int
    rows: int
    rows_used: int
    offer: Offer
    draining: bool
    healthy: bool
    model: str
    device: str
    dtype: str
    state_bytes_per_slot: int
    process_bytes: int
    dep_q: int
    codebook_bits: int
    stage_ms: Mapping[str, tuple[float, float]]
    frame_ms: Mapping[str, float]
    rows_per_tick: float
    versions: Mapping[str, str]
    text_model: TextModel | None
    counters: Mapping[str, int]
    late: bool = False
    application: str = ENGINE_APPLICATION
    leaves_in_s: float | None = None
    complaints: tuple[str, ...] = ()

    @property
    def free(self) -> int:
        """Seats that a new session may get now."""
        return self.room if self.healthy and not self.draining and not self.late else 0

    @property
    def room(self) -> int:
        """Seats that nobody has, whether or not they are given out."""
        return min(self.slots - self.used, self.rows - self.rows_used)


class Directory:
    """The last word of every engine; an entry that is not renewed is forgotten.

    Args:
        clock: monotonic seconds.
        expiry_s: how long an entry lives.
    """

    def __init__(self, clock: Callable[[], float], *, expiry_s: float = EXPIRY_S) -> None:
        self._clock = clock
        self._expiry_s = expiry_s
        self._cards: dict[str, tuple[float, EngineCard]] = {}
        self._sessions: dict[str, tuple[LiveSession, ...]] = {}
        self._authorities = 0
        self._text_models: dict[str, bytes] = {}
        self._ticks: dict[str, tuple[int, EngineTicks]] = {}
        self._asked = 0
        self._closing = False

    def report(self, card: EngineCard, sessions: tuple[LiveSession, ...] = ()) -> Orders:
        """Take an engine's card, and who holds its slots where admission named them.

        A directory that was started anew asks for the text model again.
        """
        self._cards[card.engine] = (self._clock(), card)
        self._sessions[card.engine] = sessions
        wanted = card.text_model is not None and card.text_model.digest not in self._text_models
        return Orders(
            drain=self._closing, offer_text_model=wanted, offer_ticks=not self._told(card.engine, self._asked)
        )

    def offer_text_model(self, digest: str, content: bytes) -> None:
        """Keep the bytes of a text model for gateways."""
        self._text_models[digest] = content

    def text_model(self, digest: str) -> bytes | None:
        """The bytes of a text model; None when no engine has offered it yet."""
        return self._text_models.get(digest)

    def engines(self) -> list[EngineCard]:
        """The cards of those that live."""
        oldest_s = self._clock() - self._expiry_s
        self._cards = {name: entry for name, entry in self._cards.items() if entry[0] >= oldest_s}
        self._sessions = {name: self._sessions[name] for name in self._cards}
        return [card for _, card in self._cards.values()]

    def ask_for_ticks(self) -> int:
        """Somebody wants the last ticks: engines hear it with their next report. Returns the question's number."""
        self._asked += 1
        return self._asked

    def offer_ticks(self, ticks: EngineTicks) -> None:
        """Keep what an engine answered."""
        self._ticks[ticks.engine] = (self._asked, ticks)

    def ticks(self, question: int) -> tuple[list[EngineTicks], bool]:
        """The answers to a question, and whether every engine that lives has given one."""
        engines = [card.engine for card in self.engines()]
        self._ticks = {name: self._ticks[name] for name in engines if name in self._ticks}
        told = [name for name in engines if self._told(name, question)]
        return [self._ticks[name][1] for name in told], len(told) == len(engines)

    def _told(self, engine: str, question: int) -> bool:
        return self._ticks[engine][0] >= question if engine in self._ticks else question == 0

    def views(self) -> list[EngineView]:
        """The engines that live as the authority sees them. Gateways need no sessions, so that cards have none."""
        return [_view(card, self._sessions[card.engine]) for card in self.engines()]

    def succeed(self) -> bool:
        """An authority begins: whether there was one before, whose grants may still be open."""
        self._authorities += 1
        return self._authorities > 1

    def close(self) -> None:
        """Tell every engine, at its next report, to drain."""
        self._closing = True


def _view(card: EngineCard, sessions: tuple[LiveSession, ...]) -> EngineView:
    return EngineView(
        engine=EngineName(card.engine),
        model=card.model,
        rows=card.rows,
        sessions=sessions,
        draining=card.draining,
        healthy=card.healthy,
        ticks=card.counters.get("ticks", 0),
        overruns=card.counters.get("overruns", 0),
        slots=card.slots,
    )
