"""What each shape asks of its users, as pure functions of time: no clock, no socket, no Locust.

Time is in seconds from the shared start. A user is one caller; its turns are the sessions that it holds one after the
other. Users are numbered over all workers from 0, so that a turn follows from its number alone, wherever it runs.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterator
from typing import Final, Protocol

GOLDEN: Final = 0.618034
"""Multiples of it spread any number of things evenly."""
SETTLE_S: Final = 3.0
"""Before an overload is compared with anything: connecting everybody costs the server something too."""
RAMP_STEPS: Final = 8
SHORTEST: Final = 0.75
LONGEST: Final = 1.25
"""Shares of the mean length of a session; if all were as long, all callers would move in step."""
REOPEN_S: Final = 1.0
"""A caller of a soak that was refused tries again after this."""


@dataclasses.dataclass(frozen=True, slots=True)
class Turn:
    """One session of one user.

    Attributes:
        begin_s: not before; 0 for at once.
        seconds: how long it speaks, unless the shape ends first.
        abort: it goes without a close frame: its TCP connection is reset.
        knocks: it comes when everybody else is in, and expects to be refused.
    """

    begin_s: float
    seconds: float
    abort: bool = False
    knocks: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Window:
    """A stretch of time whose latencies are looked at alone."""

    name: str
    begin_s: float
    end_s: float


class Course(Protocol):
    """A shape with its numbers.

    Attributes:
        gate: time starts when so many have opened or were refused; 0: at once.
        seconds: after this nobody speaks.
        total: sessions after which it is over, where that is not a matter of time.
        longest_s: what one session speaks at most.
    """

    @property
    def gate(self) -> int: ...

    @property
    def seconds(self) -> float: ...

    @property
    def total(self) -> int | None: ...

    @property
    def longest_s(self) -> float: ...

    def users_at(self, time_s: float) -> int:
        """How many users there are to be."""

    def turns(self, user: int) -> Iterator[Turn]:
        """What a user does; maybe without an end, until time is over."""

    def windows(self) -> list[Window]:
        """To be compared with each other; windows of the same name are one."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Steady:
    """Everybody opens, everybody starts together, nobody leaves."""

    sessions: int
    seconds: float
    total: None = None

    @property
    def gate(self) -> int:
        return self.sessions

    @property
    def longest_s(self) -> float:
        return self.seconds

    def users_at(self, time_s: float) -> int:
        return self.sessions

    def turns(self, user: int) -> Iterator[Turn]:
        yield Turn(0.0, self.seconds)

    def windows(self) -> list[Window]:
        return []


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ramp:
    """More callers in equal steps, and none leaves."""

    sessions: int
    seconds: float
    steps: int = RAMP_STEPS
    gate: int = 0
    total: None = None

    @property
    def longest_s(self) -> float:
        return self.seconds

    def users_at(self, time_s: float) -> int:
        step = min(self.steps, int(time_s / self.seconds * self.steps) + 1)
        return math.ceil(self.sessions * step / self.steps)

    def turns(self, user: int) -> Iterator[Turn]:
        yield Turn(0.0, self.seconds)

    def windows(self) -> list[Window]:
        step_s = self.seconds / self.steps
        return [
            Window(f"{self.users_at((step + 0.5) * step_s)} callers", step * step_s, (step + 1) * step_s)
            for step in range(self.steps)
        ]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spike:
    """A third of the time some callers, a third many, a third some."""

    sessions: int
    peak: int
    seconds: float
    gate: int = 0
    total: None = None

    @property
    def longest_s(self) -> float:
        return self.seconds

    def users_at(self, time_s: float) -> int:
        return self.peak if self.seconds / 3 <= time_s < 2 * self.seconds / 3 else self.sessions

    def turns(self, user: int) -> Iterator[Turn]:
        yield Turn(0.0, self.seconds)

    def windows(self) -> list[Window]:
        third_s = self.seconds / 3
        return [Window(name, n * third_s, (n + 1) * third_s) for n, name in enumerate(("before", "spike", "after"))]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Churn:
    """So many short sessions, one after the other by each of so many callers; every fourth ends without a close."""

    sessions: int
    connects: int
    session_s: float
    gate: int = 0

    @property
    def total(self) -> int:
        return self.connects

    @property
    def seconds(self) -> float:
        """A bound: each turn may take as much again to open and to close."""
        return math.ceil(self.connects / self.sessions) * (2 * self.session_s + 2) + 10

    @property
    def longest_s(self) -> float:
        return LONGEST * self.session_s

    def users_at(self, time_s: float) -> int:
        return min(self.sessions, self.connects)

    def turns(self, user: int) -> Iterator[Turn]:
        for number in range(user, self.connects, self.sessions):
            yield Turn(0.0, uneven(number) * self.session_s, abort=number % 4 == 3)

    def windows(self) -> list[Window]:
        return []


@dataclasses.dataclass(frozen=True, kw_only=True)
class Overload:
    """Every slot is taken by a caller that stays; then, in rounds, more knock: quiet, storm, quiet, storm.

    Attributes:
        sessions: how many stay: the server's capacity.
        extra: how many knock in each storm.
        burst_s: they come evenly over this; 0: all in the same instant.
    """

    sessions: int
    extra: int
    seconds: float
    rounds: int = 3
    burst_s: float = 1.0
    total: None = None

    @property
    def gate(self) -> int:
        return self.sessions

    @property
    def window_s(self) -> float:
        return (self.seconds - SETTLE_S) / (2 * self.rounds)

    @property
    def longest_s(self) -> float:
        return self.seconds

    def users_at(self, time_s: float) -> int:
        return self.sessions + self.extra

    def turns(self, user: int) -> Iterator[Turn]:
        if user < self.sessions:
            yield Turn(0.0, self.seconds)
            return
        place = (user - self.sessions) / self.extra
        for window in self.windows():
            if window.name == "storm":
                stays_s = max(0.0, window.end_s - window.begin_s - self.burst_s)  # should it be let in after all
                yield Turn(window.begin_s + place * self.burst_s, stays_s, knocks=True)

    def windows(self) -> list[Window]:
        begins = (SETTLE_S + n * self.window_s for n in range(2 * self.rounds))
        names = itertools.cycle(("quiet", "storm"))
        return [Window(name, begin_s, begin_s + self.window_s) for name, begin_s in zip(names, begins, strict=False)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Soak:
    """So many callers for a long time, each opening a new session when its last one is over."""

    sessions: int
    seconds: float
    session_s: float
    total: None = None

    @property
    def gate(self) -> int:
        return self.sessions

    @property
    def longest_s(self) -> float:
        return LONGEST * self.session_s

    def users_at(self, time_s: float) -> int:
        return self.sessions

    def turns(self, user: int) -> Iterator[Turn]:
        for number in itertools.count():
            yield Turn(0.0, uneven(number * self.sessions + user) * self.session_s)

    def windows(self) -> list[Window]:
        half_s = self.seconds / 2
        return [Window("first half", 0.0, half_s), Window("second half", half_s, self.seconds)]


def uneven(number: int) -> float:
    """A share of the mean length, spread evenly between the shortest and the longest."""
    return SHORTEST + (LONGEST - SHORTEST) * (number * GOLDEN % 1.0)
