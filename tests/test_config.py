"""What a deployment may say about rows and prompts."""

from typing import Any

import pytest

from serve_app.config import EngineSettings, GatewaySettings, checked
from serve_app.errors import ConfigError


def engine(**content: Any) -> EngineSettings:
    return checked(EngineSettings, {"runner": "passthrough", **content}, "engine")


def test_there_are_as_many_rows_as_slots_where_nothing_is_said() -> None:
    assert (engine(slots=5).state_rows, engine(slots=5, rows=8).state_rows) == (5, 8)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ({"slots": 4, "rows": 3}, "rows is below slots"),
        ({"prompts": {"wrap": "<system>"}}, "where the text goes"),
        ({"prompts": {"wrap": "{} {}"}}, "where the text goes"),
        ({"prompts": {"cache_mib": -1}}, r"prompts\.cache_mib"),
        ({"prompts": {"pause": 6}}, r"prompts\.pause: unknown key"),
        ({"guidance": float("nan")}, "guidance"),
        ({"guidance": 100.0}, "guidance"),
    ],
)
def test_what_cannot_be_served_is_refused_by_its_key(content: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        engine(**content)


def gateway(**content: Any) -> GatewaySettings:
    return checked(GatewaySettings, content, "gateway")


def test_an_authority_admits_only_where_there_are_tenants_or_a_queue() -> None:
    files = {"file": "tenants.yaml", "keys": "keys.json"}
    assert [gateway(**args).admits for args in ({}, {"queue": 1}, {"tenants": files})] == [False, True, True]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ({"queue": -1}, "queue"),
        ({"tenants": {"file": "tenants.yaml"}}, r"tenants\.keys: missing"),
        ({"tenants": {"file": "t", "keys": "k", "ledgers": "l"}}, r"tenants\.ledgers: unknown key"),
        ({"tenants": {"file": "t", "keys": "k", "reload_s": 0}}, r"tenants\.reload_s"),
    ],
)
def test_tenants_that_cannot_be_read_are_refused_by_their_key(content: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        gateway(**content)


def test_a_ledgers_password_is_in_no_text_of_the_settings() -> None:
    read = gateway(tenants={"file": "t", "keys": "k", "ledger": "postgresql://me:hunter2@db/x"})
    assert "hunter2" not in repr(read)
