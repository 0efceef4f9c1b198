"""One caller's session under Locust: open, speak at real-time pace, listen meanwhile, leave."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import gevent

from load_tests.account import LEFT_THE_QUEUE, Account
from load_tests.line import Line, LineLost, Refused
from serve_app.client.failures import RequestRefused
from serve_app.errors import ChorusError
from serve_app.units import FRAME_S
from serve_app.wire.events import Kind

OPEN_TIMEOUT_S: Final = 30.0
GRACE_S: Final = 2.0
"""How long the last answers may take."""
HANDSHAKE: Final = int(Kind.HANDSHAKE)
AUDIO: Final = int(Kind.AUDIO)
TEXT: Final = int(Kind.TEXT)
METADATA: Final = int(Kind.METADATA)
ERROR: Final = int(Kind.ERROR)
QUEUE: Final = b'{"queue"'


def opened(
    address: Callable[[], str],
    headers: Mapping[str, str],
    account: Account,
    patience_s: float,
    clock: Callable[[], float] = time.monotonic,
) -> Line | None:
    """Connect and wait for the handshake, in the queue where the server has one.

    Args:
        address: of the chat; asked when it is time, because a ticket may have to be fetched.
        patience_s: in the queue.

    Returns:
        The connection; None when there is none, with the reason in the account.
    """
    line: Line | None = None
    account.tried_s = clock()
    try:
        line = Line(address(), headers, OPEN_TIMEOUT_S)
        _wait_for_handshake(line, account, patience_s, clock)
    except Refused as refused:
        account.refusal, account.told_when = str(refused), bool(refused.retry_after)
        account.answered_s = clock() - account.tried_s
    except LineLost as lost:
        account.refusal = str(lost)
        account.answered_s = _first(account.answered_s, clock() - account.tried_s)
    except TimeoutError:
        account.refusal = "no handshake" if math.isnan(account.answered_s) else LEFT_THE_QUEUE
    except RequestRefused as refused:  # the ticket
        account.refusal = f"HTTP {refused.status}"
    except (OSError, ChorusError) as failed:
        account.refusal = type(failed).__name__
    else:
        account.open_s = clock() - account.tried_s
        return line
    finally:
        if not math.isnan(account.queue_s):
            account.queue_s = clock() - account.queue_s
    if line is not None:
        line.close()
    return None


def _wait_for_handshake(line: Line, account: Account, patience_s: float, clock: Callable[[], float]) -> None:
    limit_s = account.tried_s + OPEN_TIMEOUT_S
    while True:
        for message in line.receive(max(0.001, limit_s - clock())):
            if message[:1] == bytes([HANDSHAKE]):
                return
            queues = message[:1] == bytes([METADATA]) and message[1:].lstrip().startswith(QUEUE)
            if queues and math.isnan(account.queue_s):
                account.queue_s = clock()  # when it began, until it is over
                account.answered_s = account.queue_s - account.tried_s
                limit_s = account.queue_s + patience_s
        if clock() >= limit_s:
            raise TimeoutError


def converse(
    line: Line,
    account: Account,
    frames: Sequence[bytes],
    begin_s: float,
    stays: Callable[[], bool],
    heard: Callable[[float, int], None],
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Speak, and hear the answers out unless the account says that it aborts.

    Args:
        frames: framed messages, one of 80 ms each.
        stays: asked before each of them; False ends the session.
        heard: told the latency and the size of each answer.
    """
    listening = gevent.spawn(_listen, line, account, len(frames), heard, clock)
    try:
        _speak(line, account, frames, begin_s, stays, clock)
        if not account.aborted and account.received + (account.trips.delay_frames or 0) < account.sent:
            _hear_out(account, listening, clock)
    except OSError:
        account.ending = account.ending or "broken"
    finally:
        listening.kill()
        if account.aborted:
            line.abort()
        else:
            line.close()


def _speak(
    line: Line,
    account: Account,
    frames: Sequence[bytes],
    due_s: float,
    stays: Callable[[], bool],
    clock: Callable[[], float],
) -> None:
    for frame in frames:
        gevent.sleep(max(0.0, due_s - clock()))
        if account.ending or not stays():
            return
        now_s = clock()
        account.frame_sent(now_s, due_s)
        line.send(frame)
        if now_s - due_s > FRAME_S:  # late by more than a frame: move on, catch nothing up
            account.shifts += 1
            due_s = now_s
        due_s += FRAME_S


def _hear_out(account: Account, listening: gevent.Greenlet, clock: Callable[[], float]) -> None:
    limit_s = clock() + GRACE_S
    while clock() < limit_s and not listening.ready():
        if account.received + (account.trips.delay_frames or 0) >= account.sent:
            return
        gevent.sleep(FRAME_S / 4)


def _listen(
    line: Line, account: Account, total: int, heard: Callable[[float, int], None], clock: Callable[[], float]
) -> None:
    try:
        while account.received + (account.trips.delay_frames or 0) < total:
            messages = line.receive()
            now_s = clock()
            for message in messages:
                if message[0] == AUDIO and len(message) > 1:
                    heard(account.audio_received(now_s, len(message) - 1) or 0.0, len(message))
                elif message[0] == TEXT:
                    account.text_messages += 1
    except LineLost as lost:
        account.ending = str(lost)


def _first(value: float, other: float) -> float:
    return other if math.isnan(value) else value
