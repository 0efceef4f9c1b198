"""Bounds and times of admission."""

import dataclasses

from serve_app.admission.deadlines import RULES as DEADLINES
from serve_app.admission.deadlines import DeadlineRules
from serve_app.admission.placement import Policy


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """Whoever reads them from outside checks the ranges first. Infinite times switch a rule off.

    Attributes:
        queue_limit: callers that may wait for one model; 0 refuses at once.
        ask_again_s: how often a caller that waits should ask.
        abandon_s: a caller that has not asked for so long has left the queue.
        confirm_s: a grant that nobody confirms within this goes back.
        unlisted_s: a confirmed session that its engine has not listed after this was never opened.
        left_s: how long a report may still list a session that has left.
        silent_s: an engine that has not reported for so long is gone.
        settling_limit: callers that may wait until then, where more than `queue_limit`: who comes at that moment is not
            refused for a room that may be free.
        settle_s: how long a new authority grants nothing: longer than its predecessor's grants live and engines take to
            report. 0 where there was no predecessor.
        patience_s: as `FairQueue`.
        mean_session_s: what eta is reckoned with before any session has ended.
        policy: where a session goes.
        deadlines: when an engine is closed for missing its 80 ms.
    """

    queue_limit: int = 1_000
    ask_again_s: float = 1.0
    abandon_s: float = 5.0
    confirm_s: float = 5.0
    unlisted_s: float = 10.0
    left_s: float = 5.0
    silent_s: float = 10.0
    settling_limit: int = 0
    settle_s: float = 0.0
    patience_s: float = 900.0
    mean_session_s: float = 300.0
    policy: Policy = Policy.TIGHTEST
    deadlines: DeadlineRules = DEADLINES
