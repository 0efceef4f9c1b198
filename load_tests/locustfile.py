"""The shapes under Locust: one user is one caller. ``python -m load_tests.run`` starts it; see there for the options.

Locust spreads the users over its workers, shows its statistics and its page. Ours are accounts: each worker sends those
of its finished sessions to where the shape runs, which at the end writes the reports and gives the verdict.
"""

import functools
import gc
import math
import sys
import time
from argparse import ArgumentParser
from pathlib import Path
from typing import Any, ClassVar, Final, NoReturn

import gevent
import gevent.event
from locust import LoadTestShape, User, argument_parser, events, task
from locust.exception import StopUser
from locust.runners import MasterRunner, WorkerRunner

sys.path.insert(0, str(Path(__file__).parents[1]))  # Locust puts this folder there, not the one above

from load_tests import publish, sampler, server
from load_tests.account import LEFT_THE_QUEUE, STILL_WAITING, Account
from load_tests.caller import converse, opened
from load_tests.keyring import Keyring
from load_tests.line import framed
from load_tests.options import SHAPES, add_options, course_of, keys_of, limits_of
from load_tests.outcome import Played, judged
from load_tests.shapes import GOLDEN, REOPEN_S, Soak, Turn
from load_tests.speech import encoded
from load_tests.stage import Crew, Stage
from serve_app.client.address import chat_url
from serve_app.errors import ChorusError
from serve_app.units import FRAME_S

SPAWN_RATE: Final = 100
"""Users a second: Locust warns above it."""
TELL_S: Final = 0.5
BEGIN: Final = "chorus-begin"
TOLD: Final = "chorus-told"
SIZE: Final = "chorus-size"


class Play:
    """What this process knows of the run: the stage where the shape runs, a crew where there are users, or both."""

    stage: Stage | None = None
    crew: Crew | None = None
    keys: Keyring = Keyring({})
    frames: ClassVar[list[bytes]] = []
    begun = gevent.event.Event()
    used_before = 0
    samples: ClassVar[list[dict[str, Any]]] = []


def add_shape(parser: ArgumentParser) -> None:
    """Options of a run."""
    parser.add_argument("--shape", choices=SHAPES, default="steady")
    add_options(parser)


def prepare(environment: Any, **_: object) -> None:
    """When Locust is ready, in every process."""
    options, runner = environment.parsed_options, environment.runner
    course = course_of(options.shape, options)
    if not isinstance(runner, WorkerRunner):
        Play.stage = Stage(course, lambda: runner.send_message(BEGIN, {}))
        runner.register_message(TOLD, lambda environment, msg: _hear(msg.data))
    if not isinstance(runner, MasterRunner):
        Play.crew = Crew(course)
        Play.keys = keys_of(options)
        # A worker of Locust 2.47 builds its parser anew for each of its options whenever the number of users changes,
        # which holds up all sessions for 160 ms.
        argument_parser.default_args_dict = functools.cache(argument_parser.default_args_dict)
        argument_parser.default_args_dict()
        runner.register_message(BEGIN, lambda environment, msg: _begin())
        runner.register_message(SIZE, lambda environment, msg: _take_size(msg.data["size"]))


def begin_test(environment: Any, **_: object) -> None:
    """Before the first user, in every process."""
    options, runner = environment.parsed_options, environment.runner
    if Play.stage is not None:
        if isinstance(runner, MasterRunner):
            runner.send_message(SIZE, {"size": len(runner.clients.ready)})
        if options.shape == "churn":
            Play.used_before = server.slots(environment.host, _operator(options)).used
        if options.shape == "soak":
            gevent.spawn(_watch, sampler.roots_of(environment.host, _pids(options.pids)), options.sample_s)
    if Play.crew is not None:
        Play.crew.index = max(0, runner.worker_index)
        speech = Path(options.speech) if options.speech else None
        Play.frames[:] = [framed(message) for message in encoded(speech, Play.crew.course.longest_s)]
        gc.collect()
        gc.freeze()
        gevent.spawn(_tell_again_and_again, runner)


def end_test(environment: Any, **_: object) -> None:
    """After the last user: what was not told yet."""
    if Play.crew is not None:
        _tell(environment.runner)


def say_verdict(environment: Any, **_: object) -> None:
    """Where the shape ran: look after the slots, write the reports, set the exit status."""
    if Play.stage is None:
        return
    options, stage = environment.parsed_options, Play.stage
    free_s, leaked = _wait_until_free(environment.host, options) if options.shape == "churn" else (math.nan, 0)
    played = Played(
        shape=options.shape,
        course=stage.course,
        accounts=stage.accounts,
        missing=stage.missing,
        free_s=free_s,
        leaked=leaked,
        samples=Play.samples,
        facts=publish.facts(environment.host),
    )
    outcome = judged(played, limits_of(options))
    print(outcome.sentences())
    if options.out:
        print(f"reports    {publish.write(outcome, Path(options.out))}")
    if options.report_json:
        print(outcome.report.line())
    environment.process_exit_code = int(outcome.verdict)


class Shape(LoadTestShape):
    """Locust's view of the course: how many users there are to be."""

    def tick(self) -> tuple[int, float] | None:
        """Asked once a second; None ends the run."""
        assert Play.stage is not None
        users = Play.stage.users()
        return None if users is None else (users, SPAWN_RATE)


class Caller(User):
    """One caller: its sessions, one after the other."""

    def on_start(self) -> None:
        """Take a number."""
        assert Play.crew is not None
        self.crew = Play.crew
        self.number = self.crew.number()
        self.tenant = Play.keys.holder(self.number)
        self.leaving = False
        self.first = True

    def stop(self, force: bool = False) -> bool:
        """Locust wants fewer users: say what there is to say, close, go."""
        self.leaving = True
        return bool(super().stop(force))

    @task
    def take_turns(self) -> None:
        """Everything; once."""
        for turn in self.crew.course.turns(self.number):
            if turn.begin_s > 0:
                Play.begun.wait()
                gevent.sleep(max(0.0, self.crew.begin_s + turn.begin_s - time.monotonic()))
            if self.leaving or self.crew.over:
                break
            if self._take(turn).refusal and isinstance(self.crew.course, Soak):
                gevent.sleep(REOPEN_S)
        self._leave()

    def _take(self, turn: Turn) -> Account:
        """One session, from connecting to leaving."""
        account = Account(tenant=self.tenant, knocked=turn.knocks)
        options = self.environment.parsed_options
        headers = {} if options.ticket else Play.keys.headers(self.tenant)
        self.crew.tries()
        try:
            line = opened(self._address, headers, account, self._patience_s(turn))
            if account.refusal == LEFT_THE_QUEUE and self.crew.over:
                account.refusal = STILL_WAITING
            self._tell_locust("knock" if turn.knocks else "open", account)
            if self.first and not turn.knocks:
                self.crew.arrives()
            self.first = False
            if line is not None:
                account.ending = "stopped by the generator"  # unless it comes to its end
                Play.begun.wait()
                account.ending, account.aborted = "", turn.abort
                converse(line, account, self._said(turn), self._begin_s(), self._stays, self._heard)
        finally:
            self.crew.gives(account)
        return account

    def _address(self) -> str:
        url = chat_url(self.host or "")
        if not self.environment.parsed_options.ticket:
            return url
        return server.with_ticket(url, server.ticket(self.host or "", Play.keys.headers(self.tenant)))

    def _patience_s(self, turn: Turn) -> float:
        """In the queue; nobody waits longer than the run."""
        patience_s = float(self.environment.parsed_options.patience)
        if turn.knocks:
            return min(patience_s, turn.seconds)
        return patience_s if math.isnan(self.crew.end_s) else min(patience_s, self.crew.end_s - time.monotonic())

    def _said(self, turn: Turn) -> list[bytes]:
        return Play.frames[: max(1, round(turn.seconds / FRAME_S))]

    def _begin_s(self) -> float:
        """Shortly from now, on a grid of frames that all users share: aligned or spread over it."""
        soonest_s = max(time.monotonic(), self.crew.begin_s)
        grid_s = math.ceil(soonest_s / FRAME_S) * FRAME_S
        return grid_s if self.environment.parsed_options.aligned else grid_s + (self.number * GOLDEN % 1.0) * FRAME_S

    def _stays(self) -> bool:
        return not (self.leaving or self.crew.over)

    def _heard(self, trip_s: float, size_bytes: int) -> None:
        self.environment.events.request.fire(
            request_type="chat",
            name="frame",
            response_time=1_000 * trip_s,
            response_length=size_bytes,
            exception=None,
            context={},
        )

    def _tell_locust(self, name: str, account: Account) -> None:
        """Locust's statistics: how long it took, and whether it is an error. Knocks are meant to be refused."""
        seconds = account.answered_s if account.refusal else account.open_s
        self.environment.events.request.fire(
            request_type="chat",
            name=name,
            response_time=0.0 if math.isnan(seconds) else 1_000 * seconds,
            response_length=0,
            exception=ConnectionError(account.refusal) if account.refusal and name == "open" else None,
            context={},
        )

    def _leave(self) -> NoReturn:
        raise StopUser


def _hear(told: dict[str, Any]) -> None:
    assert Play.stage is not None
    Play.stage.hear(told)


def _begin() -> None:
    assert Play.crew is not None
    Play.crew.begin()
    Play.begun.set()


def _take_size(size: int) -> None:
    assert Play.crew is not None
    Play.crew.size = size


def _tell_again_and_again(runner: Any) -> None:
    while True:
        gevent.sleep(TELL_S)
        _tell(runner)


def _tell(runner: Any) -> None:
    told = Play.crew.told() if Play.crew is not None else None
    if told is not None:
        runner.send_message(TOLD, told)


def _operator(options: Any) -> dict[str, str]:
    return Keyring.of_variable(options.key_env).headers("")


def _wait_until_free(url: str, options: Any) -> tuple[float, int]:
    """Seconds, and slots that were never free again; all unknown slots count when nobody answers."""

    def used() -> int:
        try:
            return server.slots(url, _operator(options)).used
        except ChorusError:
            return sys.maxsize

    return server.seconds_until_free(used, Play.used_before, limits_of(options).free_s)


def _watch(roots: list[int], every_s: float) -> None:
    """Look at the server's processes for as long as the run lasts; nobody there, nothing to see."""
    while roots and Play.stage is not None:
        Play.samples.append(sampler.sample(roots, Play.stage.time_s if not math.isnan(Play.stage.time_s) else 0.0))
        gevent.sleep(every_s)


def _pids(text: str) -> list[int]:
    return [int(part) for part in text.split(",") if part.strip()]


def _register(hooks: Any) -> None:
    """Locust's hooks have no types."""
    hooks.init_command_line_parser.add_listener(add_shape)
    hooks.init.add_listener(prepare)
    hooks.test_start.add_listener(begin_test)
    hooks.test_stop.add_listener(end_test)
    hooks.quitting.add_listener(say_verdict)


_register(events)
