"""Many jobs through one runner: whoever has a free slot goes in, and the rows of a tick are those that are in."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Final

import numpy as np

from serve_app.engine.batch import TickBatch
from serve_app.engine.runner import Runner
from serve_app.errors import ChorusError, NotFinite
from serve_app.offline.job import Job
from serve_app.spec import SessionSpec
from serve_app.units import FRAME_SAMPLES, Slot

PRIMED_STEPS: Final = 64
"""Steps of a prompt that are fed at once."""


@dataclasses.dataclass(frozen=True, slots=True)
class Order:
    """A recording that waits: `begin` reads it when its turn comes, so that memory holds those alone that are in."""

    number: int
    spec: SessionSpec
    begin: Callable[[], Job]


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    """What became of an order: a finished job, or the error that ended it. Other orders do not notice."""

    number: int
    job: Job | None
    error: ChorusError | None = None


def run_batch(
    runner: Runner, orders: Iterator[Order], seats: int, on_tick: Callable[[int], None] = lambda rows: None
) -> Iterator[Outcome]:
    """Feed every order, at most ``seats`` at a time, and give each outcome as soon as it is there.

    Args:
        runner: with ``seats`` slots, and as many more where orders are guided: a guided one owns two.
        on_tick: told after every tick how many rows it had.
    """
    waiting = iter(orders)
    free = list(range(seats))[::-1]
    inside: dict[int, tuple[int, Job]] = {}  # slot to number and job
    while True:
        while free and (order := next(waiting, None)) is not None:
            slot = free.pop()
            try:
                inside[slot] = (order.number, _begin(runner, order, slot, seats))
            except ChorusError as error:
                free.append(slot)
                yield Outcome(order.number, None, error)
        if not inside:
            return
        bad = _tick(runner, {slot: job for slot, (_, job) in inside.items()})
        on_tick(len(inside))
        for slot, (number, job) in list(inside.items()):
            if slot in bad:
                runner.wipe(Slot(slot))
                yield Outcome(number, None, NotFinite("a value of it is not finite"))
            elif job.done:
                yield Outcome(number, job)
            else:
                continue
            del inside[slot]
            free.append(slot)


def _begin(runner: Runner, order: Order, slot: int, seats: int) -> Job:
    runner.check(order.spec)
    job = order.begin()
    left = runner.open(Slot(slot), order.spec, Slot(seats + slot) if order.spec.guided else None)
    while left:
        primed = runner.prime(Slot(slot), PRIMED_STEPS)
        if not primed.finite:
            raise NotFinite("a value of its prompt is not finite")
        left = primed.left_steps
    return job


def _tick(runner: Runner, jobs: dict[int, Job]) -> set[int]:
    """Step every job once; returns the slots with values that are not finite."""
    slots = sorted(jobs)
    fed = [jobs[slot].next() for slot in slots]
    pcm = np.stack([one.pcm for one in fed]) if fed else np.zeros((0, FRAME_SAMPLES), np.float32)
    result = runner.run(
        TickBatch(
            slots=np.array(slots, np.int64),
            steps=np.array([jobs[slot].steps for slot in slots], np.int64),
            pcm=pcm,
            ended=np.array([one.ended for one in fed], np.bool_),
        )
    )
    bad: set[int] = set()
    for row, slot in enumerate(slots):
        if not result.finite[row]:
            bad.add(slot)
            continue
        voice = result.pcm[row].copy() if result.audible[row] else None
        heads = None if result.heads is None else result.heads[row].copy()
        jobs[slot].take(int(result.text_token[row]), voice, heads)
    return bad
