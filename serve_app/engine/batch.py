"""What one tick gives to a runner and gets back."""

import dataclasses
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class TickBatch:
    """The R sessions of one tick; R is at least 1 and at most the runner's slots, no slot comes twice.

    Attributes:
        slots: ``int64[R]``, the slot of the runner's state that each session was opened with. What a guided session
            owns besides is the runner's to know.
        steps: ``int64[R]``, absolute step of each row, 0 for the first frame after ``Runner.open``.
        pcm: ``float32[R, 1920]``, finite. Valid until ``run`` returns.
        ended: ``bool[R]``, who hears the end of the input instead of a frame; None for nobody. Recordings end,
            conversations do not.
        given: ``int64[R, dep_q + 1]``, text token and codes said in place of sampled ones, as at this very step; -2
            samples. None samples everything.
    """

    slots: npt.NDArray[np.int64]
    steps: npt.NDArray[np.int64]
    pcm: npt.NDArray[np.float32]
    ended: npt.NDArray[np.bool_] | None = None
    given: npt.NDArray[np.int64] | None = None

    @property
    def rows(self) -> int:
        """R."""
        return int(self.slots.shape[0])


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class TickResult:
    """What the R rows gave, in the order of the batch: fresh arrays of every tick, so that a row may be kept as a view.

    Attributes:
        pcm: ``float32[R, 1920]``.
        audible: ``bool[R]``, false while the model's delay has not passed: the row's PCM is not to be sent.
        text_token: ``int64[R]``, -2 while the delay has not passed.
        codes: ``int16[R, K]``.
        finite: ``bool[R]``, false where any value that the row computed is NaN or infinite; ends that session.
        stage_ms: milliseconds by stage, for example encode, lm, depformer, decode.
        heads: ``float32[R, H, C]``, what the extra heads say; None where the model has none.
    """

    pcm: npt.NDArray[np.float32]
    audible: npt.NDArray[np.bool_]
    text_token: npt.NDArray[np.int64]
    codes: npt.NDArray[np.int16]
    finite: npt.NDArray[np.bool_]
    stage_ms: Mapping[str, float]
    heads: npt.NDArray[np.float32] | None = None
