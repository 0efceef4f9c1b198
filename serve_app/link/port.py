"""The engine as the link sees it, the grants that let a gateway in, and the sessions that one peer holds."""

import dataclasses
import secrets
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from serve_app.errors import ChorusError, StaleLease
from serve_app.link.messages import TOKEN_BYTES, Attach, Detach, Downward, Ended, Frame, Key, Sink, Upward


class EnginePort(Protocol):
    """What the link needs of an engine. Called on the link's event loop; must not block."""

    def open(self, key: Key, sink: Sink) -> None:
        """Open the leased slot; its messages go to the sink, from any thread, Ended last. Raises StaleLease.

        One sink serves all sessions of a connection, and the same one is equal to itself: an engine that groups its
        events by sink calls it once per tick.
        """
        ...

    def push(self, key: Key, number: int, pcm: npt.NDArray[np.float32]) -> None:
        """Queue a frame, ``float32[1920]``, read-only. Never raises; a stale key is dropped and counted."""
        ...

    def close(self, key: Key) -> None:
        """End the session. Idempotent."""
        ...

    def lose(self, key: Key) -> None:
        """Its gateway is gone without a word: end the session or keep it for a while, as the engine likes."""
        ...


@dataclasses.dataclass(frozen=True, slots=True)
class Address:
    """Where a link server listens."""

    host: str
    port: int


@dataclasses.dataclass(frozen=True, slots=True)
class Grant:
    """A lease and what proves it. The token is a secret: it is not in the repr."""

    address: Address
    slot: int
    generation: int
    token: bytes = dataclasses.field(repr=False)

    @property
    def key(self) -> Key:
        """How messages name the session."""
        return Key(self.slot, self.generation)


class GrantBook:
    """Tokens that were given out and not used yet; one per slot at most."""

    def __init__(self) -> None:
        self._tokens: dict[int, tuple[int, bytes]] = {}

    def issue(self, address: Address, slot: int, generation: int) -> Grant:
        """A fresh grant; it voids an older one of the same slot."""
        token = secrets.token_bytes(TOKEN_BYTES)
        self._tokens[slot] = (generation, token)
        return Grant(address, slot, generation, token)

    def redeem(self, key: Key, token: bytes) -> None:
        """Use a token up. Raises StaleLease for any that is not the slot's current one; that one stays good."""
        generation, expected = self._tokens.get(key.slot, (-1, b""))
        if generation != key.generation or not secrets.compare_digest(token, expected):
            raise StaleLease(*key)
        del self._tokens[key.slot]

    def revoke(self, key: Key) -> None:
        """Void a grant whose lease is over. Idempotent."""
        if self._tokens.get(key.slot, (-1, b""))[0] == key.generation:
            del self._tokens[key.slot]


class Holdings:
    """The sessions that one peer has attached: what goes up to the port, and what is lost with the peer.

    ``receive``, ``release`` and ``oust`` belong to the event loop; ``deliver`` is the sink of all its sessions, on
    any thread.

    Attributes:
        attached, refused: attaches that were good, and that were not, since the peer came.
        stale_messages: about sessions that the peer does not hold.
    """

    def __init__(self, port: EnginePort, grants: GrantBook, sink: Sink) -> None:
        self._port = port
        self._grants = grants
        self._sink = sink
        self._held: set[Key] = set()
        self.attached = 0
        self.refused = 0
        self.stale_messages = 0

    def __len__(self) -> int:
        return len(self._held)

    def receive(self, message: Upward) -> None:
        """Do what the peer asks. A refused attach is answered with Ended; nothing is raised."""
        match message:
            case Frame(key, number, pcm) if key in self._held:
                self._port.push(key, number, pcm)
            case Attach(key, token) if key not in self._held:
                self._attach(key, token)
            case Detach(key) if key in self._held:
                self._port.close(key)
            case _:
                self.stale_messages += 1

    def deliver(self, messages: Sequence[Downward]) -> None:
        """Pass the engine's messages on."""
        for message in messages:
            if isinstance(message, Ended):
                self._held.discard(message.key)
        self._sink(messages)

    def release(self) -> None:
        """The peer is gone: nobody holds its sessions any more."""
        held, self._held = self._held, set()
        for key in held:
            self._port.lose(key)

    def oust(self, key: Key, error: ChorusError) -> None:
        """Take a session that is not the peer's any more away from it, and tell it why. Nothing if it holds none."""
        if key in self._held:
            self._held.discard(key)
            self._sink([Ended.of(key, error)])

    def _attach(self, key: Key, token: bytes) -> None:
        try:
            self._grants.redeem(key, token)
            self._held.add(key)  # before opening: the engine thread may end it before open returns
            self._port.open(key, self.deliver)
            self.attached += 1
        except ChorusError as error:
            self.refused += 1
            self._held.discard(key)
            self._sink([Ended.of(key, error)])
