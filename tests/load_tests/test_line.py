import contextlib
import socket
import threading
from collections.abc import Callable, Iterator

import pytest
from websockets.frames import Frame, Opcode
from websockets.server import ServerProtocol

from load_tests.line import Line, LineLost, Refused, framed

LIMIT_S = 10.0
Script = Callable[[socket.socket, ServerProtocol], None]


@contextlib.contextmanager
def serving(script: Script) -> Iterator[str]:
    """A server for one connection that does what the script says once the request has come."""

    def serve() -> None:
        peer, _ = listener.accept()
        peer.settimeout(LIMIT_S)
        with peer:
            protocol = ServerProtocol()
            while not (events := protocol.events_received()):
                protocol.receive_data(peer.recv(4_096))
            protocol.send_response(protocol.accept(events[0]))  # type: ignore[arg-type]  # the request
            script(peer, protocol)

    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"ws://127.0.0.1:{listener.getsockname()[1]}/api/chat"
        thread.join(LIMIT_S)
        assert not thread.is_alive()


def flush(peer: socket.socket, protocol: ServerProtocol) -> None:
    peer.sendall(b"".join(protocol.data_to_send()))


def heard(peer: socket.socket, protocol: ServerProtocol) -> list[Frame]:
    """The next frames from the other side; [] at its end."""
    while data := peer.recv(4_096):
        protocol.receive_data(data)
        if frames := [event for event in protocol.events_received() if isinstance(event, Frame)]:
            return frames
    return []


def test_a_message_in_one_piece_with_the_answer_is_not_lost() -> None:
    def script(peer: socket.socket, protocol: ServerProtocol) -> None:
        protocol.send_binary(b"\0hello")
        protocol.send_close(1000)
        flush(peer, protocol)
        heard(peer, protocol)

    with serving(script) as url:
        line = Line(url, {}, LIMIT_S)
        assert line.receive(LIMIT_S) == [b"\0hello"]
        line.close()


def test_what_was_framed_once_reaches_every_server() -> None:
    frame, came = framed(b"\1audio"), list[bytes]()

    def script(peer: socket.socket, protocol: ServerProtocol) -> None:
        flush(peer, protocol)
        came.extend(bytes(event.data) for event in heard(peer, protocol))

    for _ in range(2):
        with serving(script) as url:
            line = Line(url, {}, LIMIT_S)
            line.send(frame)
            with pytest.raises(LineLost):
                line.receive(LIMIT_S)
            line.close()
    assert came == [b"\1audio"] * 2


def test_the_close_code_of_the_server_is_told() -> None:
    def script(peer: socket.socket, protocol: ServerProtocol) -> None:
        protocol.send_close(1012, "draining")
        flush(peer, protocol)
        heard(peer, protocol)

    with serving(script) as url:
        line = Line(url, {}, LIMIT_S)
        with pytest.raises(LineLost) as lost:
            line.receive(LIMIT_S)
        line.close()
    assert lost.value.code == 1012


def test_a_ping_is_answered_on_the_way() -> None:
    answers = list[Frame]()

    def script(peer: socket.socket, protocol: ServerProtocol) -> None:
        protocol.send_ping(b"there?")
        flush(peer, protocol)
        answers.extend(heard(peer, protocol))

    with serving(script) as url:
        line = Line(url, {}, LIMIT_S)
        with pytest.raises(LineLost):
            line.receive(LIMIT_S)
        line.close()
    assert [(frame.opcode, bytes(frame.data)) for frame in answers] == [(Opcode.PONG, b"there?")]


@pytest.mark.parametrize(("abort", "seen"), [(False, "close 1000"), (True, "reset")])
def test_a_close_is_proper_and_an_abort_is_a_reset(abort: bool, seen: str) -> None:
    saw = list[str]()

    def script(peer: socket.socket, protocol: ServerProtocol) -> None:
        flush(peer, protocol)
        try:
            heard(peer, protocol)
            saw.append(f"close {protocol.close_rcvd.code if protocol.close_rcvd else 'without a frame'}")
            flush(peer, protocol)
        except ConnectionResetError:
            saw.append("reset")

    with serving(script) as url:
        line = Line(url, {}, LIMIT_S)
        if abort:
            line.abort()
        else:
            line.close()
    assert saw == [seen]


@pytest.mark.parametrize(
    ("answer", "status", "told"),
    [
        (b"HTTP/1.1 503 X\r\nRetry-After: 7\r\nContent-Length: 2\r\n\r\n{}", 503, "HTTP 503"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", 200, "HTTP 200"),
        (b"SSH-2.0-OpenSSH\r\n", 0, "InvalidMessage"),
        (b"", 0, "InvalidMessage"),
    ],
)
def test_a_refusal_is_told_by_its_status(answer: bytes, status: int, told: str) -> None:
    def serve() -> None:
        peer, _ = listener.accept()
        with peer:
            peer.recv(4_096)
            peer.sendall(answer)

    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        with pytest.raises(Refused) as refused:
            Line(f"ws://127.0.0.1:{listener.getsockname()[1]}/", {}, LIMIT_S)
        thread.join(LIMIT_S)
    assert (refused.value.status, str(refused.value)) == (status, told)
    assert refused.value.retry_after == ("7" if status == 503 else "")


def test_headers_go_with_the_request() -> None:
    requests = list[bytes]()

    def serve() -> None:
        peer, _ = listener.accept()
        with peer:
            requests.append(peer.recv(4_096))

    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        with pytest.raises(Refused):
            Line(f"ws://127.0.0.1:{listener.getsockname()[1]}/", {"Authorization": "Bearer x"}, LIMIT_S)
        thread.join(LIMIT_S)
    assert b"Authorization: Bearer x\r\n" in requests[0]
