"""Every error that crosses a room, in one tree.

An error knows whose fault it is, what the peer is told (WebSocket close code, HTTP status, a reason slug that is part
of the interface) and whether trying again helps. Exceptions carry fields; ``__str__`` renders them. Nothing here holds
audio, text or a credential, so every message may be logged.
"""

import enum
from collections.abc import Sequence
from typing import ClassVar


class Fault(enum.Enum):
    """Whose fault an error is."""

    PEER = "peer"
    CAPACITY = "capacity"
    US = "us"


class ChorusError(Exception):
    """Root of the tree.

    Class attributes:
        reason: slug sent to the peer; stable.
        close_code: WebSocket close code once the connection is open.
        http_status: status before the upgrade.
        retry: whether the same request may succeed later.
        retry_after_s: how much later, where somebody knows; set by the instance.
    """

    reason: ClassVar[str] = "internal"
    fault: ClassVar[Fault] = Fault.US
    close_code: ClassVar[int] = 1011
    http_status: ClassVar[int] = 500
    retry: ClassVar[bool] = False
    retry_after_s: float | None = None

    def public(self) -> str:
        """The sentence that may be shown to the peer. Internal faults show no internals."""
        return str(self) if self.fault is not Fault.US else "internal error"


# --- the peer's fault -------------------------------------------------------------------------------------------------


class PeerError(ChorusError):
    """The other side sent something that we refuse."""

    reason = "bad_input"
    fault = Fault.PEER
    close_code = 1007
    http_status = 400


class ParameterRefused(PeerError):
    """A query parameter or field is out of range, not finite, malformed or names a feature that is not built."""

    reason = "bad_parameter"

    def __init__(self, name: str, value: object, why: str) -> None:
        super().__init__(name, value, why)
        self.name, self.value, self.why = name, value, why

    def __str__(self) -> str:
        return f"{self.name}={str(self.value)[:64]!r}: {self.why}"


class AudioRefused(PeerError):
    """The audio stream is not Ogg/Opus, or its error budget is spent."""

    reason = "bad_audio"

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why

    def __str__(self) -> str:
        return f"audio refused: {self.why}"


class MessageTooLarge(PeerError):
    """A WebSocket message above the cap."""

    reason = "message_too_large"
    close_code = 1009

    def __init__(self, size_bytes: int, limit_bytes: int) -> None:
        super().__init__(size_bytes, limit_bytes)
        self.size_bytes, self.limit_bytes = size_bytes, limit_bytes

    def __str__(self) -> str:
        return f"message of {self.size_bytes} bytes is over the limit of {self.limit_bytes}"


class ProtocolAbuse(PeerError):
    """Too many messages that mean nothing, or too many messages."""

    reason = "protocol_abuse"
    close_code = 1008

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why

    def __str__(self) -> str:
        return self.why


class PeerSilent(PeerError):
    """No audio for too long: the client is gone or its microphone is."""

    reason = "no_audio"
    close_code = 1008

    def __init__(self, silent_s: float) -> None:
        super().__init__(silent_s)
        self.silent_s = silent_s

    def __str__(self) -> str:
        return f"no audio for {self.silent_s:g} s"


class NotAllowed(PeerError):
    """Missing or wrong credential, or a foreign origin."""

    reason = "not_allowed"
    close_code = 1008
    http_status = 401

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why

    def __str__(self) -> str:
        return f"not allowed: {self.why}"


class Forbidden(PeerError):
    """We know who asks, and this tenant may not have what it asks for: a model, a parameter, a page's origin."""

    reason = "forbidden"
    close_code = 1008
    http_status = 403

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.what = what

    def __str__(self) -> str:
        return f"not allowed for this tenant: {self.what}"


class ModelUnknown(PeerError):
    """Nobody here serves the model that was asked for.

    Attributes:
        known: what is served, as far as the peer may know.
    """

    reason = "unknown_model"
    close_code = 1008
    http_status = 404

    def __init__(self, model: str, known: Sequence[str] = ()) -> None:
        super().__init__(model, tuple(known))
        self.model, self.known = model, tuple(known)

    def __str__(self) -> str:
        others = f"; there is {', '.join(self.known)}" if self.known else ""
        return f"no such model: {self.model[:64]!r}{others}"


class SessionOver(PeerError):
    """A session has lasted as long as its tenant's sessions may. It was told before; nobody did anything wrong."""

    reason = "session_limit"
    close_code = 1000
    http_status = 403

    def __init__(self, longest_s: float) -> None:
        super().__init__(longest_s)
        self.longest_s = longest_s

    def __str__(self) -> str:
        return f"a session may last {self.longest_s:g} s"


class SessionMoved(PeerError):
    """The session goes on over another connection: somebody presented its token. This one is of no use any more."""

    reason = "moved"
    close_code = 4001
    http_status = 409

    def __str__(self) -> str:
        return "the session goes on over another connection"


class SessionGone(PeerError):
    """Nothing to come back to. A token that was never given, one that was used and one that is late look the same."""

    reason = "session_gone"
    close_code = 1008
    http_status = 410

    def __str__(self) -> str:
        return "there is no session to come back to; open a new one"


class QuotaError(PeerError):
    """A tenant has what it may have; says when to come again."""

    reason = "quota"
    close_code = 1013
    http_status = 429
    retry = True

    def __init__(self, limit: float, retry_after_s: float) -> None:
        super().__init__(limit, retry_after_s)
        self.limit, self.retry_after_s = limit, retry_after_s


class TooManySessions(QuotaError):
    """Sessions at a time, those that wait included."""

    reason = "too_many_sessions"

    def __str__(self) -> str:
        return f"{self.limit:g} sessions at a time are allowed"


class TooManyStarts(QuotaError):
    """New sessions a minute."""

    reason = "too_many_starts"

    def __str__(self) -> str:
        return f"{self.limit:g} new sessions a minute are allowed"


class DaySpent(QuotaError):
    """Seconds of audio a day, counted from midnight UTC."""

    reason = "day_spent"

    def __str__(self) -> str:
        return f"the day's {self.limit:g} seconds of audio are spent"


class TooManyTickets(QuotaError):
    """Tickets that were asked for and not used."""

    reason = "too_many_tickets"

    def __str__(self) -> str:
        return f"{self.limit:g} unused tickets at a time are allowed"


# --- capacity ---------------------------------------------------------------------------------------------------------


class CapacityError(ChorusError):
    """Nobody did anything wrong; there is no room now."""

    reason = "full"
    fault = Fault.CAPACITY
    close_code = 1013
    http_status = 503
    retry = True


class EngineFull(CapacityError):
    """Every slot is leased, or fewer rows are free than the session needs.

    Attributes:
        slots: how many there are; 0 where nobody knows.
        rows_wanted, rows_free: where rows are what is missing; 0 and 0 where it is a slot.
    """

    def __init__(self, slots: int, rows_wanted: int = 0, rows_free: int = 0) -> None:
        super().__init__(slots, rows_wanted, rows_free)
        self.slots, self.rows_wanted, self.rows_free = slots, rows_wanted, rows_free

    def __str__(self) -> str:
        if self.rows_wanted > 1:
            return f"a guided session needs {self.rows_wanted} rows of the batch and {self.rows_free} is free"
        if self.rows_wanted:
            return "all rows of the batch are taken"
        return f"all {self.slots} slots are taken" if self.slots else "all slots are taken"


class EngineLate(EngineFull):
    """There are free slots, and the ticks take longer than a frame: one more conversation would be one too many."""

    reason = "late"

    def __str__(self) -> str:
        return "the server does not keep up with those that it has; try again"


class QueueFull(CapacityError):
    """Every place in the queue is taken too, or a tenant that had less of the queue got this one's place."""

    reason = "queue_full"

    def __init__(self, waiting: int, retry_after_s: float) -> None:
        super().__init__(waiting, retry_after_s)
        self.waiting, self.retry_after_s = waiting, retry_after_s

    def __str__(self) -> str:
        return f"all slots are taken and {self.waiting} are waiting"


class EngineLost(CapacityError):
    """The engine that held the session is gone, unreachable or not ready."""

    reason = "engine_lost"
    close_code = 1012

    def __str__(self) -> str:
        return "the engine is not reachable; try again"


class EngineDraining(CapacityError):
    """The engine finishes its sessions and takes no new ones."""

    reason = "draining"
    close_code = 1012

    def __str__(self) -> str:
        return "the server is restarting; try again"


# --- ours -------------------------------------------------------------------------------------------------------------


class SessionFault(ChorusError):
    """This session failed inside the engine; its neighbours did not."""

    reason = "session_failed"

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why

    def __str__(self) -> str:
        return f"session failed: {self.why}"


class NotFinite(SessionFault):
    """A value of this session's row is NaN or infinite."""

    reason = "not_finite"


class StaleLease(ChorusError):
    """A lease whose slot has been given to somebody else, or a grant token that is unknown or used."""

    reason = "stale_lease"

    def __init__(self, slot: int, generation: int) -> None:
        super().__init__(slot, generation)
        self.slot, self.generation = slot, generation

    def __str__(self) -> str:
        return f"lease of slot {self.slot}, generation {self.generation}, is stale"


class LinkError(ChorusError):
    """Bytes or a hello that the link between gateway and engine refuses; names both versions where they differ."""

    reason = "link"

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why

    def __str__(self) -> str:
        return f"link: {self.why}"


class ConfigError(ChorusError):
    """A configuration that cannot be served: names the file and the key."""

    reason = "config"

    def __init__(self, where: str, why: str) -> None:
        super().__init__(where, why)
        self.where, self.why = where, why

    def __str__(self) -> str:
        return f"{self.where}: {self.why}"


class LedgerError(ChorusError):
    """The ledger's database cannot be read or written. Never shows its address, which may hold a password."""

    reason = "ledger"

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why

    def __str__(self) -> str:
        return f"ledger: {self.why}"


class CheckpointError(ChorusError):
    """A checkpoint folder that cannot be loaded: every problem found, each naming its file, key and shapes."""

    reason = "checkpoint"

    def __init__(self, where: str, problems: Sequence[str]) -> None:
        super().__init__(where, tuple(problems))
        self.where, self.problems = where, tuple(problems)

    def __str__(self) -> str:
        return "\n  ".join([f"cannot load {self.where}:", *self.problems])


class NotBuilt(CheckpointError):
    """A checkpoint that needs a feature which is not built; names the feature and the config key."""

    reason = "not_built"


class ShapeError(ChorusError):
    """A tensor of the wrong shape at a public seam of the model."""

    reason = "shape"

    def __init__(self, what: str, got: Sequence[int], want: str) -> None:
        super().__init__(what, tuple(got), want)
        self.what, self.got, self.want = what, tuple(got), want

    def __str__(self) -> str:
        return f"{self.what}: got shape {list(self.got)}, want {self.want}"
