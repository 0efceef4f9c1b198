"""The ledger: seconds of conversation by tenant and day, in a database, so that they survive restarts.

SQLite in a file is the default; a PostgreSQL address does the same (its driver is not among our dependencies). One row
a session and day, holding what the session spoke so far: a write that comes twice changes nothing, so a writer that is
unsure whether it wrote writes again.
"""

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, TextIO

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from serve_app.admission.day_book import Charge, Day
from serve_app.errors import ConfigError, LedgerError
from serve_app.units import SessionId

BATCH: Final = 500
"""Rows of one statement: SQLite allows 32,766 values."""
CSV_FIELDS: Final = ("day", "tenant", "sessions", "audio_s")

_METADATA: Final = sa.MetaData()
SPOKEN: Final = sa.Table(
    "spoken",
    _METADATA,
    sa.Column("session", sa.String(128), primary_key=True),
    sa.Column("day", sa.String(10), primary_key=True),
    sa.Column("tenant", sa.String(63), nullable=False),
    sa.Column("seconds", sa.Float(53), nullable=False),
    sa.Index("spoken_by_day_and_tenant", "day", "tenant"),
)
_INSERT: Final[Mapping[str, Any]] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}


class Ledger:
    """Reads and writes the ledger. Blocks on the database: keep it off event loops. Thread-safe.

    Args:
        url: ``sqlite:///ledger.sqlite`` or ``postgresql+DRIVER://...``. Makes the table when it is not there.

    Raises:
        ConfigError: no such kind of database or driver, or it cannot be reached. Never shows the URL.
    """

    def __init__(self, url: str) -> None:
        try:
            self._engine = sa.create_engine(url)
            if self._engine.dialect.name not in _INSERT:
                raise ConfigError("ledger", f"{self._engine.dialect.name} is neither sqlite nor postgresql")
            _METADATA.create_all(self._engine)
        except (sa.exc.SQLAlchemyError, ImportError, ValueError) as error:
            raise ConfigError("ledger", f"cannot be opened ({_kind(error)})") from None

    def close(self) -> None:
        """Let go of the connections."""
        self._engine.dispose()

    def write(self, charges: Iterable[Charge]) -> None:
        """Keep charges, in one transaction; the larger of old and new stays.

        Raises:
            LedgerError: nothing was written.
        """
        rows = [
            {"session": charge.session, "day": charge.day, "tenant": charge.tenant, "seconds": charge.seconds}
            for charge in sorted(charges, key=lambda charge: (charge.session, charge.day))  # one order: no deadlock
        ]
        upsert = keep_larger(self._engine.dialect.name)
        with _told(), self._engine.begin() as connection:
            for start in range(0, len(rows), BATCH):
                connection.execute(upsert, rows[start : start + BATCH])

    def day_totals(self, day: Day) -> dict[str, float]:
        """Tenant to seconds of one day: what `DayBook.restore` takes. Raises LedgerError."""
        query = sa.select(SPOKEN.c.tenant, sa.func.sum(SPOKEN.c.seconds).label("seconds")).where(SPOKEN.c.day == day)
        with _told(), self._engine.connect() as connection:
            return {row.tenant: row.seconds for row in connection.execute(query.group_by(SPOKEN.c.tenant))}

    def charged(self, sessions: Sequence[SessionId]) -> dict[SessionId, dict[Day, float]]:
        """What is written of these sessions, by day: what `DayBook.adopt` takes. Raises LedgerError."""
        found: dict[SessionId, dict[Day, float]] = {}
        with _told(), self._engine.connect() as connection:
            for start in range(0, len(sessions), BATCH):
                some = list(sessions[start : start + BATCH])
                query = sa.select(SPOKEN.c.session, SPOKEN.c.day, SPOKEN.c.seconds).where(SPOKEN.c.session.in_(some))
                for session, day, seconds in connection.execute(query):
                    found.setdefault(session, {})[day] = seconds
        return found

    def days(self, tenant: str | None = None, first: Day = "", last: Day = "9999") -> list[tuple[Day, str, int, float]]:
        """Day, tenant, sessions, seconds; by day, then tenant; one tenant's when it is named. Raises LedgerError."""
        query = (
            sa.select(SPOKEN.c.day, SPOKEN.c.tenant, sa.func.count(), sa.func.sum(SPOKEN.c.seconds))
            .where(SPOKEN.c.day >= first, SPOKEN.c.day <= last)
            .group_by(SPOKEN.c.day, SPOKEN.c.tenant)
            .order_by(SPOKEN.c.day, SPOKEN.c.tenant)
        )
        if tenant is not None:
            query = query.where(SPOKEN.c.tenant == tenant)
        with _told(), self._engine.connect() as connection:
            return [(day, name, count, seconds) for day, name, count, seconds in connection.execute(query)]

    def write_csv(self, file: TextIO, tenant: str | None = None, first: Day = "", last: Day = "9999") -> None:
        """The same as CSV with a head line. Raises LedgerError."""
        lines = csv.writer(file, lineterminator="\n")
        lines.writerow(CSV_FIELDS)
        lines.writerows(
            (day, name, count, f"{seconds:.2f}") for day, name, count, seconds in self.days(tenant, first, last)
        )


def keep_larger(dialect: str) -> Any:
    """The statement that writes one row, or raises the one that is there to it."""
    insert = _INSERT[dialect](SPOKEN)
    larger = sa.case((insert.excluded.seconds > SPOKEN.c.seconds, insert.excluded.seconds), else_=SPOKEN.c.seconds)
    return insert.on_conflict_do_update(index_elements=["session", "day"], set_={"seconds": larger})


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except sa.exc.SQLAlchemyError as error:
        raise LedgerError(_kind(error)) from None  # the driver's own words may hold the address


def _kind(error: Exception) -> str:
    return type(error).__name__
