from urllib.parse import parse_qs, urlsplit

import pytest

from serve_app.client.address import chat_url
from serve_app.errors import ParameterRefused
from serve_app.spec import Sampling
from serve_app.wire.query import parse_chat_query


@pytest.mark.parametrize(
    ("typed", "address"),
    [
        ("localhost:8000", "ws://localhost:8000/api/chat"),
        ("http://localhost:8000/", "ws://localhost:8000/api/chat"),
        ("https://moshi.example", "wss://moshi.example/api/chat"),
        ("ws://[::1]:9/api/chat?text_seed=4", "ws://[::1]:9/api/chat?text_seed=4"),
        ("wss://host/under/api/chat", "wss://host/under/api/chat"),
    ],
)
def test_what_a_person_types_becomes_the_address_of_the_chat(typed: str, address: str) -> None:
    assert chat_url(typed) == address


@pytest.mark.parametrize("typed", ["ftp://host", "http://", "", "http:///api/chat", "ws://host:port", "ws://[::1"])
def test_what_is_no_address_is_refused_by_name(typed: str) -> None:
    with pytest.raises(ParameterRefused, match="url"):
        chat_url(typed)


def test_the_server_reads_back_the_sampling_that_the_client_asked_for() -> None:
    sampling = Sampling(
        text_temperature=0.1, text_top_k=3, audio_temperature=0.0, audio_top_k=0, text_seed=5, audio_seed=(1 << 63) - 1
    )
    query = parse_qs(urlsplit(chat_url("localhost", sampling)).query)
    assert parse_chat_query({name: values[0] for name, values in query.items()}).sampling == sampling
