"""Every bound of the engine, and the pace of its loop, in one place."""

import dataclasses

from serve_app.units import FRAME_S


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much may wait, and for how long.

    Attributes:
        inbox_frames: frames of one session that may wait; the oldest is dropped. Above the lag bound, so that a burst
            after a stall is seen as lag and not as overflow.
        lag_s: when more than this waits, the session is cut down to ``keep_frames``.
        keep_frames: what is left of a session that is cut.
        unopened_s: how long a lease may stay unopened.
        gap_s: a session whose frames are further apart than this had an underrun.
        overrun_s: a tick longer than this is an overrun.
        run_failures: consecutive failed runs after which the engine calls itself unhealthy.
        prime_share: of a tick's time, what prompts may take in every turn while somebody converses.
        prime_alone_s: what they may take in a turn while nobody does.
        prime_steps: the fewest and the most steps of a prompt that are fed at once.
    """

    inbox_frames: int = 16
    lag_s: float = 1.0
    keep_frames: int = 2
    unopened_s: float = 2.0
    gap_s: float = 2 * FRAME_S
    overrun_s: float = FRAME_S
    run_failures: int = 3
    prime_share: float = 0.2
    prime_alone_s: float = FRAME_S / 2
    prime_steps: tuple[int, int] = (4, 256)

    def __post_init__(self) -> None:
        if not 1 <= self.keep_frames <= self.inbox_frames:
            raise ValueError(f"keep_frames {self.keep_frames} must be from 1 to inbox_frames {self.inbox_frames}")
        if not 1 <= self.prime_steps[0] <= self.prime_steps[1]:
            raise ValueError(f"prime_steps {self.prime_steps} must be at least one and in order")

        for name in ("lag_s", "unopened_s", "gap_s", "overrun_s", "run_failures"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} {getattr(self, name)} must be positive")

    @property
    def lag_frames(self) -> int:
        """The most frames that may wait before the session is cut."""
        return max(self.keep_frames, int(self.lag_s / FRAME_S))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How eagerly the loop ticks. The defaults take whoever is ready, a little apart.

    Attributes:
        gather_s: how long to wait for more rows once the first frame is there.
        interval_s: the least time from the start of one tick to the start of the next, whatever was measured.
        fixed_share: how much of the time the fixed part of ticks may take, from which the interval follows: what a tick
            costs before its first row, as measured, over this. Less makes larger batches and longer waits.
        interval_limit_s: the longest interval that may follow.

    All waits end early when every live session has a frame, and when a session has two: that tick is the step by which
    it catches up.
    """

    gather_s: float = 0.0
    interval_s: float = 0.0
    fixed_share: float = 0.8
    interval_limit_s: float = FRAME_S / 4

    def __post_init__(self) -> None:
        if not 0 < self.fixed_share <= 1:
            raise ValueError(f"fixed_share {self.fixed_share} must be above 0 and at most 1")
        if not self.interval_limit_s >= 0:
            raise ValueError(f"interval_limit_s {self.interval_limit_s} must not be negative")
        if not (self.gather_s >= 0 and self.interval_s >= 0):
            raise ValueError(f"gather_s {self.gather_s} and interval_s {self.interval_s} must not be negative")
