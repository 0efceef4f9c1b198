"""Which engine a call for a slot goes to, of those that Ray knows."""

import asyncio
from types import SimpleNamespace
from typing import Any

from serve_app.serving.granted import Admitted
from serve_app.serving.placed_router import LATE, PlacedRouter
from serve_app.spec import SessionSpec
from serve_app.units import SessionId


def replica(name: str, *, late: bool | None = False) -> Any:
    """One that has not been asked yet has no stats."""
    stats = {} if late is None else {LATE: late}
    return SimpleNamespace(replica_id=SimpleNamespace(unique_id=name), routing_stats=stats)


def chosen(*replicas: Any, engine: str | None = None) -> set[str]:
    """Names of those that may get the call, over many calls."""
    router = object.__new__(PlacedRouter)
    arguments: list[Any] = [SessionSpec()]
    if engine is not None:
        arguments.append(Admitted(SessionId("s"), "acme", engine))
    request: Any = SimpleNamespace(args=arguments)
    names = set()
    for _ in range(50):
        for rank in asyncio.run(router.choose_replicas(list(replicas), request)):
            names |= {one.replica_id.unique_id for one in rank}
    return names


def test_the_engine_that_the_authority_named_gets_the_call_even_if_it_is_late() -> None:
    assert chosen(replica("a"), replica("b", late=True), engine="b") == {"b"}


def test_where_the_named_engine_is_gone_any_other_may_get_it() -> None:
    assert chosen(replica("a"), replica("b"), engine="c") == {"a", "b"}


def test_an_engine_that_misses_its_deadlines_gets_no_call_while_another_keeps_them() -> None:
    assert chosen(replica("a"), replica("b", late=True), replica("c", late=None)) == {"a", "c"}


def test_where_all_miss_their_deadlines_one_is_asked_and_says_so() -> None:
    assert chosen(replica("a", late=True), replica("b", late=True)) == {"a", "b"}


def test_where_there_is_no_engine_there_is_no_choice() -> None:
    assert chosen() == set()
