"""What a visitor presents, and what of it is looked at."""

import pytest
from starlette.datastructures import Headers, QueryParams

from serve_app.errors import NotAllowed
from serve_app.serving.knock import Knock

KEY = "chorus_0123456789ab_" + "s" * 43


@pytest.mark.parametrize(
    "headers", [{"authorization": f"Bearer {KEY}"}, {"authorization": f"bearer  {KEY}"}, {"kyutai-api-key": KEY}]
)
def test_a_key_is_taken_from_the_headers_that_known_clients_use(headers: dict[str, str]) -> None:
    assert Knock.of(headers, {}).key == KEY


@pytest.mark.parametrize("name", ["auth_id", "worker_auth_id", "key", "authorization"])
def test_a_key_in_the_query_is_not_looked_at(name: str) -> None:
    assert Knock.of({}, {name: KEY}) == Knock("", None, None)


def test_a_ticket_is_kept_for_later_when_there_is_a_key() -> None:
    assert Knock.of({"kyutai-api-key": KEY}, {"ticket": "t"}).ticket is None
    assert Knock.of({"origin": "https://a.example"}, {"ticket": "t"}) == Knock("", "t", "https://a.example")


def test_it_prints_no_secret() -> None:
    assert "sss" not in repr(Knock(KEY, "sss", None))


@pytest.mark.parametrize(
    ("headers", "query"),
    [
        ([("authorization", f"Bearer {KEY}"), ("authorization", f"Bearer {KEY}")], ""),
        ([("kyutai-api-key", "other"), ("kyutai-api-key", KEY)], ""),
        ([("authorization", f"Bearer {KEY}"), ("kyutai-api-key", "other")], ""),
        ([("origin", "https://a.example"), ("origin", "https://evil.example")], "ticket=t"),
        ([], "ticket=t&ticket=u"),
        ([("kyutai-api-key", KEY)], "ticket=t&ticket=u"),
    ],
)
def test_what_is_presented_twice_is_not_chosen_from(headers: list[tuple[str, str]], query: str) -> None:
    raw = [(name.encode(), value.encode()) for name, value in headers]
    with pytest.raises(NotAllowed):
        Knock.of(Headers(raw=raw), QueryParams(query))


def test_a_password_of_a_proxy_hides_no_key() -> None:
    assert Knock.of({"authorization": "Basic YTpi", "kyutai-api-key": KEY}, {}).key == KEY


@pytest.mark.parametrize(
    ("origin", "host", "home"),
    [
        ("http://localhost:8998", "localhost:8998", True),
        ("https://127.0.0.1:8998", "127.0.0.1:8998", True),
        ("https://voice.example", "127.0.0.1:8998", True),
        ("http://localhost:8998", "localhost:9999", False),
        ("http://localhost", "localhost:8998", False),
        ("http://evil.example", "evil.example", False),
        ("https://voice.example.evil", "voice.example", False),
        ("http://voice.example", "localhost:8998", False),
        ("null", "", False),
        ("http://[", "[", False),
    ],
)
def test_home_is_what_the_operator_named_and_the_own_page_on_loopback(origin: str, host: str, home: bool) -> None:
    knock = Knock.of({"origin": origin, "host": host}, {}, {"https://voice.example"})
    assert (knock.origin, knock.home) == (origin, home)
