"""How long a session may last, in a time that sleeping moves."""

import asyncio
import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import pytest

from serve_app.errors import SessionOver
from serve_app.serving.term import mind_term
from tests.link.fakes import on_loop


@dataclasses.dataclass
class Lasting:
    """What has a term; its time begins at once."""

    longest_s: float
    left_s: float
    now_s: float = 0.0
    told: list[tuple[float, Mapping[str, Any]]] = dataclasses.field(default_factory=list)

    async def live(self) -> None: ...

    async def tell(self, value: Mapping[str, Any]) -> None:
        self.told.append((self.now_s, value))

    async def sleep(self, spent_s: float) -> None:
        self.now_s += spent_s


@pytest.mark.parametrize(
    ("longest_s", "lived_s", "warned_s", "ends_in_s"),
    [(3_600.0, 0.0, 3_540.0, 60), (20.0, 0.0, 0.0, 20), (100.0, 70.0, 0.0, 30)],
    ids=["long", "shorter than the warning", "came back"],
)
@on_loop
async def test_a_session_is_warned_a_minute_before_its_end(
    longest_s: float, lived_s: float, warned_s: float, ends_in_s: int
) -> None:
    session = Lasting(longest_s, longest_s - lived_s)
    with pytest.raises(SessionOver) as over:
        await mind_term(session, session.tell, session.sleep)
    assert session.told == [(warned_s, {"session": {"ends_in_s": ends_in_s}})]
    assert session.now_s == longest_s - lived_s
    assert over.value.close_code == 1000


@on_loop
async def test_a_session_without_a_limit_is_never_warned() -> None:
    session = Lasting(math.inf, math.inf)
    minding = asyncio.create_task(mind_term(session, session.tell, asyncio.sleep))
    for _ in range(5):
        await asyncio.sleep(0)
    assert not minding.done()
    assert session.told == []
    minding.cancel()


@on_loop
async def test_a_session_that_came_back_too_late_for_its_limit_ends_at_once() -> None:
    session = Lasting(100.0, 0.0)
    with pytest.raises(SessionOver):
        await mind_term(session, session.tell, session.sleep)
    assert session.now_s == 0.0
