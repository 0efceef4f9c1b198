"""The ledger survives restarts and counts every second once."""

import io
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.dialects import postgresql

from serve_app import cli
from serve_app.accounts.ledger import BATCH, SPOKEN, Ledger, keep_larger
from serve_app.admission.day_book import Charge, DayBook
from serve_app.errors import ConfigError, LedgerError
from serve_app.units import SessionId
from tests.admission.clock import Clock

DAYS = ["2026-11-21", "2026-11-22"]


def url_in(folder: Path) -> str:
    return f"sqlite:///{folder / 'ledger.sqlite'}"


def charge(session: str, seconds: float, day: str = DAYS[1], tenant: str = "acme") -> Charge:
    return Charge(SessionId(session), tenant, day, seconds)


def test_what_was_written_is_there_after_a_restart(tmp_path: Path) -> None:
    first = Ledger(url_in(tmp_path))
    first.write([charge("a", 1.5), charge("b", 2.0), charge("a", 9.0, DAYS[0]), charge("c", 4.0, tenant="other")])
    first.close()
    second = Ledger(url_in(tmp_path))
    assert second.day_totals(DAYS[1]) == {"acme": 3.5, "other": 4.0}
    assert second.charged([SessionId("a"), SessionId("x")]) == {"a": {DAYS[0]: 9.0, DAYS[1]: 1.5}}
    second.close()


@given(amounts=st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(DAYS), st.floats(0, 1e5)), max_size=20))
def test_writing_in_any_order_and_twice_keeps_the_largest(amounts: list[tuple[str, str, float]]) -> None:
    ledger = Ledger("sqlite://")
    for session, day, seconds in [*amounts, *reversed(amounts)]:
        ledger.write([charge(session, seconds, day)])
    for day in DAYS:
        largest = {s: max(x for t, d, x in amounts if (t, d) == (s, day)) for s, d, _ in amounts if d == day}
        assert ledger.day_totals(day).get("acme", 0.0) == pytest.approx(sum(largest.values()))
    ledger.close()


def test_more_than_one_batch_is_written_and_read(tmp_path: Path) -> None:
    ledger = Ledger(url_in(tmp_path))
    names = [f"s{number}" for number in range(2 * BATCH + 1)]
    ledger.write(charge(name, 1.0) for name in names)
    assert ledger.day_totals(DAYS[1]) == {"acme": len(names)}
    assert len(ledger.charged([SessionId(name) for name in names])) == len(names)
    ledger.close()


def test_a_chain_of_processes_counts_every_second_once(tmp_path: Path) -> None:
    """Each process hears the session's whole length, dies with a part unwritten, and leaves a ledger to the next."""
    wall, session = Clock(1_795_348_800.0), SessionId("a")  # 2026-11-22, noon
    for spoken_s in (10.0, 25.0, 60.0):
        ledger = Ledger(url_in(tmp_path))
        book = DayBook(wall)
        book.restore(book.today, ledger.day_totals(book.today))
        book.adopt(session, "acme", ledger.charged([session]).get(session, {}))
        book.note(session, "acme", spoken_s)
        assert book.spent_s("acme") == spoken_s
        ledger.write(book.take_charges())
        book.note(session, "acme", spoken_s + 5.0)
        ledger.close()
    assert Ledger(url_in(tmp_path)).day_totals("2026-11-22") == {"acme": 60.0}


def test_csv_has_a_head_line_and_one_line_a_day_and_tenant(tmp_path: Path) -> None:
    ledger = Ledger(url_in(tmp_path))
    ledger.write([charge("a", 1.0), charge("b", 2.255), charge("a", 9.0, DAYS[0]), charge("c", 4.0, tenant="other")])
    text = io.StringIO()
    ledger.write_csv(text)
    assert text.getvalue() == (
        "day,tenant,sessions,audio_s\n2026-11-21,acme,1,9.00\n2026-11-22,acme,2,3.25\n2026-11-22,other,1,4.00\n"
    )
    own = io.StringIO()
    ledger.write_csv(own, "other", first=DAYS[1])
    assert own.getvalue().splitlines()[1:] == ["2026-11-22,other,1,4.00"]
    ledger.close()


def test_the_command_prints_the_ledger(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ledger = Ledger(url_in(tmp_path))
    ledger.write([charge("a", 1.0), charge("a", 9.0, DAYS[0])])
    ledger.close()
    assert cli.main(["ledger", "--url", url_in(tmp_path), "--last", DAYS[0]]) == 0
    assert capsys.readouterr().out == "day,tenant,sessions,audio_s\n2026-11-21,acme,1,9.00\n"


@pytest.mark.parametrize(
    "url", ["", "ledger.sqlite", "mysql://user:hunter2@host/x", "nosuch://user:hunter2@host/x",
            "sqlite:////no/such/folder/ledger.sqlite", "postgresql+nosuchdriver://user:hunter2@host/x"]
)  # fmt: skip
def test_a_ledger_that_cannot_be_opened_says_so_without_its_address(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Ledger(url)
    assert "hunter2" not in str(caught.value)
    assert "ledger" in str(caught.value)


def test_a_database_that_fails_later_is_a_ledger_error(tmp_path: Path) -> None:
    ledger = Ledger(url_in(tmp_path))
    other = sa.create_engine(url_in(tmp_path))
    SPOKEN.drop(other)
    other.dispose()
    with pytest.raises(LedgerError):
        ledger.write([charge("a", 1.0)])
    with pytest.raises(LedgerError):
        ledger.day_totals(DAYS[0])
    ledger.close()


def test_the_statement_that_writes_is_postgresql_too() -> None:
    """No server here: what SQLAlchemy would send is compiled for that dialect."""
    compiled = str(keep_larger("postgresql").compile(dialect=postgresql.dialect()))  # type: ignore[no-untyped-call]
    assert "ON CONFLICT (session, day) DO UPDATE" in compiled
