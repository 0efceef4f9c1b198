"""Who is let in."""

import pytest

from serve_app.errors import NotAllowed
from serve_app.serving.door import Door

KEY = "0123456789abcdef-schlüssel"
LOCAL = {"host": "localhost:8998"}


@pytest.mark.parametrize("host", ["localhost", "localhost:8998", "127.0.0.1:8998", "[::1]:8998"])
def test_without_a_key_loopback_names_are_answered(host: str) -> None:
    Door(None).admit({"host": host}, {})


@pytest.mark.parametrize("host", ["evil.example:8998", "192.0.2.1", "", "localhost.evil.example", "[::1", "a:b:c"])
def test_without_a_key_no_other_name_is_answered(host: str) -> None:
    with pytest.raises(NotAllowed):
        Door(None).admit({"host": host}, {})


@pytest.mark.parametrize("origin", ["http://localhost:3000", "http://127.0.0.1", "https://[::1]:9"])
def test_pages_of_this_machine_are_welcome(origin: str) -> None:
    Door(None).admit({**LOCAL, "origin": origin}, {})


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "", "file://", "http://localhost.evil.example", "http://[", "localhost"]
)
def test_pages_of_others_are_not(origin: str) -> None:
    with pytest.raises(NotAllowed):
        Door(None).admit({**LOCAL, "origin": origin}, {})


def test_the_servers_own_page_and_listed_origins_are_welcome() -> None:
    door = Door(KEY, ["https://App.example/"])
    key = {"authorization": f"Bearer {KEY}", "host": "voice.example"}
    door.admit({**key, "origin": "https://voice.example"}, {})
    door.admit({**key, "origin": "https://app.example"}, {})
    with pytest.raises(NotAllowed):
        door.admit({**key, "origin": "https://other.example"}, {})


@pytest.mark.parametrize(
    ("headers", "query"),
    [
        ({"authorization": f"Bearer {KEY}"}, {}),
        ({"authorization": f"bearer  {KEY}"}, {}),
        ({"kyutai-api-key": KEY}, {}),
        ({}, {"auth_id": KEY}),
        ({}, {"worker_auth_id": KEY}),
    ],
)
def test_the_key_is_taken_wherever_known_clients_put_it(headers: dict[str, str], query: dict[str, str]) -> None:
    Door(KEY).admit({"host": "voice.example", **headers}, query)


@pytest.mark.parametrize(
    ("headers", "query"),
    [
        ({}, {}),
        ({"authorization": "Bearer"}, {}),
        ({"authorization": f"Basic {KEY}"}, {}),
        ({"authorization": f"Bearer {KEY}x"}, {}),
        ({"kyutai-api-key": KEY[:-1]}, {}),
        ({}, {"auth_id": ""}),
        ({"kyutai-api-key": "wrong"}, {"auth_id": KEY}),
    ],
)
def test_no_key_or_a_wrong_one_is_refused_without_being_repeated(
    headers: dict[str, str], query: dict[str, str]
) -> None:
    with pytest.raises(NotAllowed) as caught:
        Door(KEY).admit({"host": "voice.example", **headers}, query)
    assert KEY[:-1] not in str(caught.value)
