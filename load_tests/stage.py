"""Who has come, when time starts, what was told: one stage where the shape runs, one crew in each process with users.

Locust carries the messages between them; nothing here knows Locust. Monotonic clocks of different machines do not
agree, so every crew counts from the instant at which it heard that time starts.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from load_tests.account import Account
from load_tests.shapes import Course
from serve_app.units import FRAME_S

GATE_S: Final = 8.0
"""Time starts after this at the latest: a server ends sessions that say nothing for ten seconds."""
LEAD_S: Final = 0.5
"""From the word that time starts to the first frame, so that the word is everywhere."""
LAST_S: Final = 10.0
"""After its last frame a session waits for answers and closes; longer than this it is not waited for."""


@dataclasses.dataclass
class Stage:
    """Where the shape runs. Not thread-safe.

    Attributes:
        course: what is played.
        say_begin: tells all crews that time starts.
    """

    course: Course
    say_begin: Callable[[], None]
    clock: Callable[[], float] = time.monotonic
    accounts: list[Account] = dataclasses.field(default_factory=list)
    tried: int = 0
    arrived: int = 0
    _raised_s: float = math.nan
    _begin_s: float = math.nan

    @property
    def time_s(self) -> float:
        """Since the shared start; NaN before."""
        return self.clock() - self._begin_s

    @property
    def missing(self) -> int:
        """Sessions that were begun and of which nobody gave account."""
        return self.tried - len(self.accounts)

    def hear(self, told: Mapping[str, Any]) -> None:
        """What a crew sent."""
        self.tried += told["tried"]
        self.arrived += told["arrived"]
        self.accounts.extend(Account.of_record(record) for record in told["accounts"])

    def users(self) -> int | None:
        """How many there are to be now; None when it is over. Starts time when everybody is there."""
        now_s = self.clock()
        if math.isnan(self._begin_s):
            self._raised_s = now_s if math.isnan(self._raised_s) else self._raised_s
            if self.arrived < self.course.gate and now_s < self._raised_s + GATE_S:
                return self.course.users_at(0.0)
            self._begin_s = now_s
            self.say_begin()
        return None if self._over() else self.course.users_at(min(self.time_s, self.course.seconds))

    def _over(self) -> bool:
        if self.course.total is not None and len(self.accounts) >= self.course.total:
            return True
        late_s = self.time_s - LEAD_S - self.course.seconds
        return late_s > LAST_S or (late_s > 0 and not self.missing)


@dataclasses.dataclass
class Crew:
    """The users of one process. Not thread-safe.

    Attributes:
        index, size: which of how many processes, so that users have numbers of their own over all of them.
    """

    course: Course
    index: int = 0
    size: int = 1
    clock: Callable[[], float] = time.monotonic
    begin_s: float = math.nan
    _users: int = 0
    _tried: int = 0
    _arrived: int = 0
    _done: list[Account] = dataclasses.field(default_factory=list)

    @property
    def end_s(self) -> float:
        """After this nobody speaks. A frame is for the grid on which all begin, one for the spread over it."""
        return self.begin_s + self.course.seconds + 2 * FRAME_S

    @property
    def over(self) -> bool:
        """Whether time is over; False before it starts."""
        return self.clock() >= self.end_s

    def begin(self) -> None:
        """Time starts; a second word changes nothing."""
        if math.isnan(self.begin_s):
            self.begin_s = self.clock() + LEAD_S

    def number(self) -> int:
        """Of the next user of this process."""
        number = self.index + self._users * self.size
        self._users += 1
        return number

    def tries(self) -> None:
        """A session is begun."""
        self._tried += 1

    def arrives(self) -> None:
        """A user of the gate has opened or was refused."""
        self._arrived += 1

    def gives(self, account: Account) -> None:
        """A session is over."""
        self._done.append(account)

    def told(self) -> dict[str, Any] | None:
        """What happened since the last time, for the stage; None for nothing."""
        if not (self._tried or self._arrived or self._done):
            return None
        origin_s = self.begin_s if not math.isnan(self.begin_s) else self.clock()
        told = {
            "tried": self._tried,
            "arrived": self._arrived,
            "accounts": [account.record(origin_s) for account in self._done],
        }
        self._tried = self._arrived = 0
        self._done = []
        return told
