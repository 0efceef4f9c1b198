"""What a deployment may say about rows and prompts."""

from typing import Any

import pytest

from serve_app.config import EngineSettings, checked
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
