"""Conversations at real-time pace under Locust: one user is one session.

    locust -f load_tests/locustfile.py --headless -u 16 -r 16 -t 40s --host http://localhost:8998

Audio is encoded once at the start. A user opens, speaks ``--seconds`` of it, hears the answers out, and waits for the
end: sessions are not reopened, so every one that was asked for is in the report. Locust's statistics get two kinds of
request, ``open`` and ``frame`` (its response time is the frame's latency); the report with losses, underruns and the
generator's own lateness follows at the end. The sockets are websocket-client's, which gevent makes cooperative.
"""

import math
import sys
import time
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NoReturn

import gevent
from locust import User, events, task
from locust.exception import StopUser
from websocket import WebSocket, WebSocketBadStatusException, WebSocketException

sys.path.insert(0, str(Path(__file__).parents[1]))  # Locust puts this folder there, not the one above

from load_tests.account import Account, report
from load_tests.speech import encoded
from serve_app.client.address import chat_url
from serve_app.units import FRAME_S
from serve_app.wire.events import Kind

OPEN_TIMEOUT_S: Final = 30.0
GRACE_S: Final = 2.0
LEAD_S: Final = 0.5
"""Between a session's opening and its first frame."""
GOLDEN: Final = 0.618034
"""Multiples of it spread any number of sessions over a frame."""

ACCOUNTS: list[Account] = []
MESSAGES: list[bytes] = []


def add_options(parser: ArgumentParser) -> None:
    """Options of a conversation."""
    parser.add_argument("--seconds", type=float, default=30.0, help="how long each session speaks")
    parser.add_argument("--speech", default="", help="WAV file to say; a synthetic voice without it")
    parser.add_argument("--aligned", action="store_true", help="all sessions send at the same instant")
    parser.add_argument("--report-json", action="store_true", help="the report as a line of JSON too")


def encode_speech(environment: Any, **_: object) -> None:
    """Before the first user."""
    options = environment.parsed_options
    MESSAGES[:] = encoded(Path(options.speech) if options.speech else None, options.seconds)
    ACCOUNTS.clear()


def say_report(environment: Any, **_: object) -> None:
    """After the last one. Exit status 1 when a session was refused, ended early or lost a frame."""
    if not ACCOUNTS:
        return
    outcome = report(ACCOUNTS, len(MESSAGES) * FRAME_S)
    print(outcome.sentences())
    if environment.parsed_options.report_json:
        print(outcome.line())
    environment.process_exit_code = 0 if outcome.clean else 1


class Talker(User):
    """One conversation."""

    def on_start(self) -> None:
        """Open it; refused ones are counted and stay away."""
        self.account = Account()
        self.index = len(ACCOUNTS)
        ACCOUNTS.append(self.account)
        self.socket = _socket()
        start_s = time.monotonic()
        failure: Exception | None = None
        try:
            self.socket.settimeout(OPEN_TIMEOUT_S)
            self.socket.connect(chat_url(self.host or "http://localhost:8998"), suppress_origin=True)
            while self.socket.recv()[:1] != bytes([Kind.HANDSHAKE]):
                pass
        except WebSocketBadStatusException as refused:
            failure, self.account.refusal = refused, f"HTTP {refused.status_code}"
        except (OSError, WebSocketException) as failed:
            failure, self.account.refusal = failed, type(failed).__name__
        self.account.open_s = time.monotonic() - start_s
        self._tell("open", self.account.open_s, 0, failure)
        if failure is not None:
            self._leave()

    @task
    def converse(self) -> None:
        """Speak everything, listen meanwhile and a little longer; once."""
        listening = gevent.spawn(self._listen)
        try:
            self._speak(MESSAGES, self._begin_s())
            listening.join(timeout=GRACE_S)
        except (OSError, WebSocketException) as failed:
            self.account.ending = type(failed).__name__
        finally:
            listening.kill()
            self.socket.close(timeout=2)
        self._leave()

    def _leave(self) -> NoReturn:
        """Stop; the last one ends the run."""
        self.account.done = True
        if len(ACCOUNTS) >= self.environment.parsed_options.num_users and all(account.done for account in ACCOUNTS):
            gevent.spawn(self.environment.runner.quit)
        raise StopUser

    def _begin_s(self) -> float:
        """Shortly from now, on a grid of frames that all users share: aligned or spread over it."""
        grid = math.ceil((time.monotonic() + LEAD_S) / FRAME_S) * FRAME_S
        return grid if self.environment.parsed_options.aligned else grid + (self.index * GOLDEN % 1.0) * FRAME_S

    def _speak(self, messages: Sequence[bytes], begin_s: float) -> None:
        due_s = begin_s
        for message in messages:
            gevent.sleep(max(0.0, due_s - time.monotonic()))
            now_s = time.monotonic()
            self.account.frame_sent(now_s, due_s)
            self.socket.send_binary(message)
            if now_s - due_s > FRAME_S:  # late by more than a frame: move on, catch nothing up
                self.account.shifts += 1
                due_s = now_s
            due_s += FRAME_S

    def _listen(self) -> None:
        try:
            while self.account.received + (self.account.trips.delay_frames or 0) < len(MESSAGES):
                message = self.socket.recv()
                now_s = time.monotonic()
                if not message:
                    break
                if message[0] == Kind.AUDIO and len(message) > 1:
                    trip_s = self.account.audio_received(now_s, len(message) - 1)
                    self._tell("frame", trip_s or 0.0, len(message), None)
                elif message[0] == Kind.TEXT:
                    self.account.text_messages += 1
        except (OSError, WebSocketException) as failed:
            self.account.ending = type(failed).__name__

    def _tell(self, name: str, seconds: float, size_bytes: int, failure: Exception | None) -> None:
        self.environment.events.request.fire(
            request_type="chat",
            name=name,
            response_time=1_000 * seconds,
            response_length=size_bytes,
            exception=failure,
            context={},
        )


def _socket() -> Any:
    """One that may be read and written at the same time; websocket-client has no types."""
    return WebSocket(enable_multithread=True)


def _register(hooks: Any) -> None:
    """Locust's hooks have no types."""
    hooks.init_command_line_parser.add_listener(add_options)
    hooks.test_start.add_listener(encode_speech)
    hooks.quitting.add_listener(say_report)


_register(events)
