"""How long an answer takes: from sending the end of a frame to receiving the audio of the step that consumed it.

The protocol numbers nothing, so both sides count: one frame of 1,920 samples in is one step, one step gives one audio
message out, and the model's delay swallows the first few. Output *i* therefore answers frame ``i + delay``, where the
delay is the largest that causality allows: no answer comes before its frame was sent. It is exact once a single frame
was answered within 80 ms. A frame that the server drops shifts the count by one, and shows as 80 ms more.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Final

KEPT_FRAMES: Final = 50_000
"""Times kept per session: 66 minutes, 800 KB."""


@dataclasses.dataclass(slots=True)
class RoundTrips:
    """Times of one session's frames, in and out. Not thread-safe; times are seconds of one monotonic clock.

    Attributes:
        delay_frames: steps that give no output, as far as known; None before the first output.
    """

    sent_s: list[float] = dataclasses.field(default_factory=list)
    received_s: list[float] = dataclasses.field(default_factory=list)
    delay_frames: int | None = None

    def frame_sent(self, now_s: float) -> None:
        """The message that completes the next frame goes out now."""
        if len(self.sent_s) < KEPT_FRAMES:
            self.sent_s.append(now_s)

    def frame_received(self, now_s: float) -> float | None:
        """The audio of the next step came in now.

        Returns:
            Its round trip in seconds; None where the times of its frame are not kept.
        """
        if len(self.received_s) >= KEPT_FRAMES:
            return None
        index = len(self.received_s)
        self.received_s.append(now_s)
        ahead = len(self.sent_s) - 1 - index
        if ahead >= 0 and (self.delay_frames is None or ahead < self.delay_frames):
            self.delay_frames = ahead
        return self._of(index, self.delay_frames or 0)

    def cut_off(self) -> None:
        """The answers that are missing do not come any more; the next frame's does, for the model goes on."""
        del self.sent_s[len(self.received_s) + (self.delay_frames or 0) :]

    @property
    def latest_s(self) -> float | None:
        """Round trip of the last answer."""
        return self._of(len(self.received_s) - 1, self.delay_frames or 0) if self.received_s else None

    def all_s(self, delay_frames: int | None = None) -> list[float]:
        """Every round trip so far, under the delay that is known now, which corrects early guesses."""
        delay = (self.delay_frames or 0) if delay_frames is None else delay_frames
        found = (self._of(index, delay) for index in range(len(self.received_s)))
        return [value for value in found if value is not None]

    def _of(self, index: int, delay: int) -> float | None:
        frame = index + delay
        return self.received_s[index] - self.sent_s[frame] if frame < len(self.sent_s) else None


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least ``share`` of the values do not exceed; NaN of nothing.

    Args:
        share: in (0, 1], 0.99 for p99.
    """
    if not values:
        return math.nan
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]
