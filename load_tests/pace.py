"""Many sessions at real-time pace from one asyncio loop: the load generator's core, and a command.

    python -m load_tests.pace --url http://localhost:8998 --sessions 16 --seconds 30 --json

All sessions are opened first; then they begin within 80 ms of each other, evenly spread, or together with
``--aligned``. Nothing is caught up: a generator that is late by more than a frame moves its schedule and says so.
"""

import argparse
import asyncio
import contextlib
import dataclasses
import gc
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

from load_tests.account import Account, Report, report
from load_tests.speech import encoded
from serve_app.client.address import chat_url
from serve_app.errors import ChorusError
from serve_app.units import FRAME_S
from serve_app.wire.events import Kind

OPEN_TIMEOUT_S: Final = 30.0
GRACE_S: Final = 2.0
"""How long the last answers may take."""
SPEAKING: Final = "speaking"
"""Printed when all sessions are open."""
LEAD_S: Final = 0.25
"""Between the last opening and the first frame."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to do to a server.

    Attributes:
        aligned: all sessions send at the same instant; otherwise spread evenly over 80 ms.
        at_once: how many are opening at the same time.
        key: bearer credential.
    """

    url: str
    sessions: int
    seconds: float
    speech: Path | None = None
    aligned: bool = False
    at_once: int = 16
    key: str | None = None


async def run(plan: Plan, begun: Callable[[], None] = lambda: None) -> Report:
    """Hold the conversations and add up.

    Args:
        begun: called when all that could be opened are open, before the first frame.

    Raises:
        AudioFileError: the speech cannot be read.
        ParameterRefused: the url is none.
    """
    messages = encoded(plan.speech, plan.seconds)
    accounts = [Account() for _ in range(plan.sessions)]
    async with contextlib.AsyncExitStack() as stack:
        turnstile = asyncio.Semaphore(plan.at_once)
        opening = (_open(plan, account, turnstile, stack) for account in accounts)
        connections = await asyncio.gather(*opening)
        gc.collect()
        gc.freeze()
        begun()
        begin_s = time.monotonic() + LEAD_S
        step_s = 0.0 if plan.aligned else FRAME_S / max(1, plan.sessions)
        await asyncio.gather(
            *(
                _converse(connection, account, messages, begin_s + index * step_s)
                for index, (connection, account) in enumerate(zip(connections, accounts, strict=True))
                if connection is not None
            )
        )
    return report(accounts, plan.seconds)


async def _open(
    plan: Plan, account: Account, turnstile: asyncio.Semaphore, stack: contextlib.AsyncExitStack
) -> ClientConnection | None:
    """Connect and wait for the handshake; None, and the reason in the account, when that fails."""
    headers = {"Authorization": f"Bearer {plan.key}"} if plan.key else None
    async with turnstile:
        account.tried_s = start_s = time.monotonic()
        try:
            async with asyncio.timeout(OPEN_TIMEOUT_S):
                connection = await connect(
                    chat_url(plan.url), additional_headers=headers, compression=None, proxy=None, close_timeout=2.0
                )
                stack.push_async_callback(connection.close)
                while (await connection.recv())[:1] != bytes([Kind.HANDSHAKE]):
                    pass
        except InvalidStatus as refused:
            account.refusal = f"HTTP {refused.response.status_code}"
            account.answered_s = time.monotonic() - start_s
        except (OSError, TimeoutError, InvalidHandshake, ConnectionClosed) as failed:
            account.refusal = type(failed).__name__
        else:
            account.open_s = time.monotonic() - start_s
            return connection
    return None


async def _converse(connection: ClientConnection, account: Account, messages: Sequence[bytes], begin_s: float) -> None:
    """Speak everything, listen meanwhile and a little longer."""
    answered = asyncio.Event()
    listening = asyncio.create_task(_listen(connection, account, answered, len(messages)))
    try:
        await _speak(connection, account, messages, begin_s)
        async with asyncio.timeout(GRACE_S):
            await answered.wait()
    except TimeoutError:
        pass  # counted as lost
    except ConnectionClosed as closed:
        account.ending = f"close {closed.rcvd.code if closed.rcvd else 1006}"
    finally:
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)


async def _speak(connection: ClientConnection, account: Account, messages: Sequence[bytes], begin_s: float) -> None:
    due_s = begin_s
    for message in messages:
        await asyncio.sleep(max(0.0, due_s - time.monotonic()))
        now_s = time.monotonic()
        account.frame_sent(now_s, due_s)
        await connection.send(message)
        if now_s - due_s > FRAME_S:
            account.shifts += 1
            due_s = now_s
        due_s += FRAME_S


async def _listen(connection: ClientConnection, account: Account, answered: asyncio.Event, total: int) -> None:
    with contextlib.suppress(ConnectionClosed):
        async for message in connection:
            now_s = time.monotonic()
            if message[:1] == bytes([Kind.AUDIO]) and len(message) > 1:
                account.audio_received(now_s, len(message) - 1)
                if account.received + (account.trips.delay_frames or 0) >= total:
                    answered.set()
            elif message[:1] == bytes([Kind.TEXT]):
                account.text_messages += 1


def main(argv: Sequence[str] | None = None) -> int:
    """The command; exit status 1 when a session was refused, ended early or lost a frame."""
    parser = argparse.ArgumentParser(prog="python -m load_tests.pace", description=__doc__)
    parser.add_argument("--url", default="http://localhost:8998")
    parser.add_argument("--sessions", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--speech", type=Path, help="WAV file to say; a synthetic voice without it")
    parser.add_argument("--aligned", action="store_true", help="all sessions send at the same instant")
    parser.add_argument("--key-file", type=Path)
    parser.add_argument("--json", action="store_true", help="the report as one line of JSON, the last on stdout")
    options = parser.parse_args(argv)
    plan = Plan(
        url=options.url,
        sessions=options.sessions,
        seconds=options.seconds,
        speech=options.speech,
        aligned=options.aligned,
        key=options.key_file.read_text().strip() if options.key_file else None,
    )
    try:
        outcome = asyncio.run(run(plan, lambda: print(SPEAKING, flush=True)))
    except ChorusError as error:
        print(error, file=sys.stderr)
        return 2
    print(outcome.sentences())
    if options.json:
        print(outcome.line())
    return 0 if outcome.clean else 1


if __name__ == "__main__":
    sys.exit(main())
