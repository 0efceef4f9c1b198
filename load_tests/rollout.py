"""What people notice when a new version comes while they talk: one command starts a fleet, fills it and rolls out.

    python -m load_tests.rollout --sessions 16 --engines 2
    python -m load_tests.rollout --sessions 16 --engines 1 --surge 100
    python -m load_tests.rollout --sessions 16 --application gateway --json

Half of the callers do what they are told: they finish what they say, leave, and call again. The other half talk on
until they are sent away, and call again then. Beside them a newcomer calls all the time. A caller is *told* when it
hears `going_away` before its end, and *cut silently* when somebody else ends its session before it heard that. A frame
is *lost* when it was sent at least half a second before the end of its session and not answered.

The exit status is 0 when everybody was told, nobody was cut silently, and, with two engines and more, newcomers got in
within five seconds. With one engine and no surge nobody gets in while the new version loads: that gap is stated.
"""

import argparse
import asyncio
import dataclasses
import json
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from load_tests.callers import Caller, newcomers
from load_tests.child import Child, copy, edit
from load_tests.speech import encoded
from serve_app.errors import ChorusError

AT_ONCE_S: Final = 5.0
"""Newcomers shall get in within this."""
SETTLED_S: Final = 3.0
"""Of conversation before the rollout, and of newcomers after it."""
ROLLED_S: Final = 300.0
SPEECH_S: Final = 60.0
CHANGES: Final[dict[str, dict[str, Any]]] = {"engine": {"name": "second"}, "gateway": {"opened_s": 11.0}}
"""What makes it another version."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What was noticed. Times in seconds."""

    application: str
    engines: int
    sessions: int
    told: int
    left: int
    ended_at_the_deadline: int
    ended_with_a_hint: int
    cut_silently: int
    frames_sent: int
    frames_lost: int
    frames_dropped: int
    called_again_worst_s: float
    newcomers: int
    newcomer_p50_s: float
    newcomer_worst_s: float
    newcomer_worst_at_s: float
    replicas_new_after_s: float
    last_old_session_s: float
    generator_late_p99_ms: float

    @property
    def clean(self) -> bool:
        """Everybody told, nobody cut."""
        return (
            self.told == self.sessions
            and not self.cut_silently
            and self.ended_at_the_deadline == self.ended_with_a_hint
        )


async def run(child: Child, application: str, sessions: int, engines: int, drain_s: float) -> Outcome:
    """Fill a deployment that has just been started, roll out, wait for its old sessions to end, add up."""
    url = await child.url()
    messages = encoded(None, SPEECH_S)
    over = asyncio.Event()
    callers = [Caller(url, messages, obeys=index % 2 == 0) for index in range(sessions)]
    talking = [asyncio.create_task(caller.talk(over)) for caller in callers]
    await asyncio.gather(*(caller.live.wait() for caller in callers))
    await asyncio.sleep(SETTLED_S)
    coming = asyncio.create_task(newcomers(url, over))
    began_s = time.monotonic()
    child.change(application, CHANGES[application])
    await child.says(re.compile(f"rolled out {application}"), ROLLED_S)
    rolled_s = time.monotonic() - began_s
    await asyncio.sleep(drain_s + SETTLED_S)
    over.set()
    await asyncio.gather(*talking)
    took_s = await coming
    worst_s, worst_at_s = max(took_s)
    firsts = [caller.visits[0] for caller in callers]
    visits = [visit for caller in callers for visit in caller.visits]
    lates_s = sorted(late_s for visit in visits for late_s in visit.account.late_s)
    again_s = [visit.opened_s for caller in callers for visit in caller.visits[1:]]
    return Outcome(
        application=application,
        engines=engines,
        sessions=sessions,
        told=sum(visit.told_s is not None for visit in firsts),
        left=sum(visit.code is None for visit in firsts),
        ended_at_the_deadline=sum(visit.code is not None and not visit.silent for visit in firsts),
        ended_with_a_hint=sum(visit.code == 1012 and visit.hint for visit in firsts),
        cut_silently=sum(visit.silent for visit in visits),
        frames_sent=sum(visit.account.sent for visit in visits),
        frames_lost=sum(visit.lost for visit in visits),
        frames_dropped=sum(visit.dropped for visit in visits),
        called_again_worst_s=round(max(again_s, default=0.0), 2),
        newcomers=len(took_s),
        newcomer_p50_s=round(statistics.median(spent_s for spent_s, _ in took_s), 3),
        newcomer_worst_s=round(worst_s, 2),
        newcomer_worst_at_s=round(worst_at_s - began_s, 2),
        replicas_new_after_s=round(rolled_s, 2),
        last_old_session_s=round(max(visit.ended_s for visit in firsts) - began_s, 2),
        generator_late_p99_ms=round(1_000 * lates_s[int(0.99 * (len(lates_s) - 1))], 1),
    )


async def measure(options: argparse.Namespace) -> Outcome:
    """Start, measure, stop. Raises ChorusError."""
    with tempfile.TemporaryDirectory() as folder:
        config = copy(options.config, Path(folder))
        edit(config, "engine", {"engines": options.engines, "drain_s": options.drain_s, "surge": options.surge})
        edit(config, "gateway", {"drain_s": options.drain_s})
        async with Child.up(config) as child:
            return await run(child, options.application, options.sessions, options.engines, options.drain_s)


def _rendered(outcome: Outcome) -> str:
    gap = (
        f"with one engine nobody new got in for {outcome.newcomer_worst_s:g} s"
        if outcome.engines == 1
        else f"newcomers got in within {outcome.newcomer_worst_s:g} s (median {outcome.newcomer_p50_s:g} s)"
    )
    return "\n".join(
        (
            f"{outcome.told} of {outcome.sessions} sessions told, {outcome.cut_silently} cut silently",
            f"{outcome.left} left by themselves, {outcome.ended_at_the_deadline} sent away at the end",
            f"{outcome.frames_lost} of {outcome.frames_sent} frames lost; the server says it dropped "
            f"{outcome.frames_dropped}, which it does when it lags",
            gap,
            f"who called again got in within {outcome.called_again_worst_s:g} s",
            f"new replicas after {outcome.replicas_new_after_s:g} s, last old session {outcome.last_old_session_s:g} s",
            f"generator late by {outcome.generator_late_p99_ms:g} ms at p99",
        )
    )


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m load_tests.rollout", description="Measure a rollout.")
    parser.add_argument("--config", type=Path, default=Path("configs/demo.yaml"))
    parser.add_argument("--application", choices=sorted(CHANGES), default="engine")
    parser.add_argument("--sessions", type=int, default=16)
    parser.add_argument("--engines", type=int, default=2)
    parser.add_argument("--surge", type=int, default=0, help="percent of engines that are started before old ones go")
    parser.add_argument("--drain-s", type=float, default=15.0, help="how long old sessions may go on")
    parser.add_argument("--json", action="store_true", help="print the last line as JSON")
    options = parser.parse_args(argv)
    try:
        outcome = asyncio.run(measure(options))
    except ChorusError as error:
        print(f"rollout: {error}", file=sys.stderr)
        return 2
    print(_rendered(outcome))
    if options.json:
        print(json.dumps(dataclasses.asdict(outcome)))
    in_time = options.engines == 1 or outcome.newcomer_worst_s <= AT_ONCE_S
    return 0 if outcome.clean and in_time else 1


if __name__ == "__main__":
    sys.exit(main())
