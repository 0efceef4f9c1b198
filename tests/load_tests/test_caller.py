import json
import socket

import pytest
from websockets.server import ServerProtocol

from load_tests.account import Account
from load_tests.caller import opened
from load_tests.server import ASK_S
from serve_app.client.failures import RequestRefused
from serve_app.errors import ParameterRefused
from tests.load_tests.test_line import Script, flush, heard, serving


def saying(*messages: bytes) -> Script:
    """A server that says all of it and then waits for the other side to go."""

    def script(peer: socket.socket, protocol: ServerProtocol) -> None:
        for message in messages:
            protocol.send_binary(message)
        flush(peer, protocol)
        heard(peer, protocol)
        flush(peer, protocol)

    return script


def place(number: int) -> bytes:
    return b"\4" + json.dumps({"queue": {"place": number, "eta_s": None}}).encode()


def came(script: Script, patience_s: float = ASK_S) -> tuple[bool, Account]:
    """Whether a caller got in, and its account."""
    account = Account()
    with serving(script) as url:
        line = opened(lambda: url, {}, account, patience_s)
        if line is not None:
            line.close()
    return line is not None, account


def test_a_caller_that_is_let_in_at_once_did_not_wait() -> None:
    entered, account = came(saying(b"\0"))
    assert entered
    assert account.open_s > 0
    assert account.queue_s != account.queue_s  # NaN


def test_a_caller_waits_in_the_queue_and_its_wait_is_measured() -> None:
    entered, account = came(saying(place(2), place(1), b'\4{"type": "dropped"}', b"\0"))
    assert entered
    assert not account.refusal
    assert 0 <= account.queue_s <= account.open_s
    assert 0 < account.answered_s <= account.open_s


def test_a_caller_leaves_the_queue_when_its_patience_is_over() -> None:
    entered, account = came(saying(place(1)), patience_s=0.05)
    assert (entered, account.refusal) == (False, "left the queue")
    assert account.queue_s >= 0.05
    assert account.answered_s > 0


def test_metadata_that_is_no_place_in_the_queue_is_no_wait() -> None:
    _, account = came(saying(b'\4{"type": "queue"}', b"\0"))
    assert account.queue_s != account.queue_s


def test_a_refusal_while_waiting_is_told_by_its_close_code() -> None:
    def script(peer: socket.socket, protocol: ServerProtocol) -> None:
        protocol.send_binary(place(1))
        protocol.send_close(1013, "full")
        flush(peer, protocol)
        heard(peer, protocol)

    entered, account = came(script)
    assert (entered, account.refusal) == (False, "close 1013")
    assert account.answered_s > 0


@pytest.mark.parametrize(
    ("failure", "told"),
    [
        (ParameterRefused("url", "x", "no"), "ParameterRefused"),
        (RequestRefused(429, "/api/ticket", ""), "HTTP 429"),
        (ConnectionRefusedError(), "ConnectionRefusedError"),
    ],
)
def test_what_fails_on_the_way_is_told_by_its_name(failure: Exception, told: str) -> None:
    def address() -> str:
        raise failure

    account = Account()
    assert opened(address, {}, account, ASK_S) is None
    assert account.refusal == told
