"""Which engine: rows and slots of the engines of one model, lent and taken back. A session takes a slot and its rows.

Engines stand in bins by their free rows, and one integer has a bit for each bin that is not empty, so that finding the
tightest fit among a thousand engines is a shift and a bit count.
"""

import collections
import dataclasses
import enum

from serve_app.admission.answers import EngineName


class Policy(enum.Enum):
    """Where a session goes of all the engines with room for it."""

    TIGHTEST = "tightest"
    """The fullest: leaves others empty, to be drained, and room in one piece for sessions of two rows."""
    LEAST_LOADED = "least_loaded"
    """The one with most free rows: shortest ticks for everybody."""


@dataclasses.dataclass(slots=True)
class _Engine:
    rows: int
    slots: int
    open: bool
    used: int = 0
    sessions: int = 0
    bin: int = 0
    """Where it stands; 0: nowhere, because it takes nobody."""

    @property
    def free(self) -> int:
        """Rows that the next session may have; 0 where there is no slot for one."""
        return max(self.rows - self.used, 0) if self.open and self.sessions < self.slots else 0


class Placement:
    """Not thread-safe. The engine itself is the last guard of its rows; this is the account of what was promised."""

    def __init__(self, policy: Policy = Policy.TIGHTEST) -> None:
        self._policy = policy
        self._engines: dict[EngineName, _Engine] = {}
        # Ordered dicts as sets with a cheap first: a plain dict walks over what was deleted before it.
        self._bins: dict[int, collections.OrderedDict[EngineName, None]] = {}
        self._filled = 0
        self.used = 0
        """Rows lent, on open engines and others."""
        self.open_rows = 0
        """Rows of the engines that take new sessions."""
        self.open_engines = 0

    def __len__(self) -> int:
        return len(self._engines)

    @property
    def largest(self) -> int:
        """Rows of the largest engine, open or not: nobody can have more. Looks at every engine."""
        return max((engine.rows for engine in self._engines.values()), default=0)

    def used_of(self, name: EngineName) -> int:
        """Rows lent of one engine."""
        return self._engines[name].used

    def put(self, name: EngineName, rows: int, *, open_: bool, slots: int | None = None) -> None:
        """Add an engine, or tell what changed: more or fewer rows or slots, taking new sessions or not.

        Without a word about slots there is one for each row.
        """
        seats = rows if slots is None else slots
        engine = self._engines.get(name)
        if engine is None:
            engine = self._engines[name] = _Engine(rows, seats, open_)
        elif (engine.rows, engine.slots, engine.open) == (rows, seats, open_):
            return
        else:
            self._count(engine, -1)
            engine.rows, engine.slots, engine.open = rows, seats, open_
        self._count(engine, 1)
        self._file(name, engine)

    def remove(self, name: EngineName) -> None:
        """Forget an engine and what is lent of it."""
        engine = self._engines.pop(name)
        self._count(engine, -1)
        self.used -= engine.used
        engine.open = False
        self._file(name, engine)

    def take(self, rows: int) -> EngineName | None:
        """Lend a slot and rows of the engine that the policy prefers; None where no open engine has them free."""
        fitting = self._filled >> rows
        if not fitting:
            return None
        lowest = self._policy is Policy.TIGHTEST
        free = rows + (fitting & -fitting if lowest else fitting).bit_length() - 1
        name = next(iter(self._bins[free]))
        self.hold(name, rows)
        return name

    def hold(self, name: EngineName, rows: int) -> None:
        """Lend a slot and rows of this engine, even if it has none: that is what was found there."""
        engine = self._engines[name]
        engine.used += rows
        engine.sessions += 1
        self.used += rows
        self._file(name, engine)

    def give(self, name: EngineName, rows: int) -> None:
        """Take rows back, and the slot with them; a session that gives its rows in parts gives its slot first."""
        engine = self._engines[name]
        assert engine.used >= rows, f"{name} gets {rows} rows back and lent {engine.used}"
        engine.used -= rows
        engine.sessions = max(engine.sessions - 1, 0)
        self.used -= rows
        self._file(name, engine)

    def _count(self, engine: _Engine, sign: int) -> None:
        if engine.open:
            self.open_rows += sign * engine.rows
            self.open_engines += sign

    def _file(self, name: EngineName, engine: _Engine) -> None:
        old, new = engine.bin, engine.free
        if old == new:
            return
        if old:
            left = self._bins[old]
            del left[name]
            if not left:
                self._filled &= ~(1 << old)
        if new:
            if new not in self._bins:
                self._bins[new] = collections.OrderedDict()
            self._bins[new][name] = None
            self._filled |= 1 << new
        engine.bin = new
