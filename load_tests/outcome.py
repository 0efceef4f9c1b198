"""What a shape comes to: the numbers, the checks that it has to pass, and the verdict. Pure."""

import collections
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from load_tests.account import Account, Report, known, report, without_nan
from load_tests.shapes import Churn, Course, Overload, Soak
from load_tests.timeline import Moment, by_window, moments
from load_tests.verdict import Check, Limits, Verdict, conversation_checks, verdict
from serve_app.client.round_trip import percentile

FULL: Final = frozenset({"HTTP 429", "HTTP 503"})
"""How a server without room is to answer."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    """What was gathered.

    Attributes:
        shape, course: what was played, and its numbers.
        missing: sessions of which nobody gave account: a worker died.
        free_s, leaked: seconds until all slots were free again, and slots that never were; NaN and 0: not looked at.
        samples: memory and descriptors of the server over time, as :mod:`load_tests.sampler` takes them.
        facts: machine, commit, date, address: what a reader needs to know.
    """

    shape: str
    course: Course
    accounts: Sequence[Account]
    missing: int = 0
    free_s: float = math.nan
    leaked: int = 0
    samples: Sequence[Mapping[str, Any]] = ()
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A run and what is thought of it.

    Attributes:
        report: the sessions that were to succeed.
        knocks: those that came when the server was full; None where none did.
        windows: latencies by part of the run: frames, p50 and p99.
        tenants: sessions asked for, opened and refused by tenant.
    """

    played: Played
    report: Report
    knocks: Report | None
    windows: Mapping[str, Mapping[str, float]]
    tenants: Mapping[str, Mapping[str, int]]
    moments: Sequence[Moment]
    checks: Sequence[Check]
    verdict: Verdict

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "verdict": str(self.verdict),
            "exit_status": int(self.verdict),
            "shape": self.played.shape,
            "course": dataclasses.asdict(self.played.course),  # type: ignore[call-overload]  # every course is one
            "facts": dict(self.played.facts),
            "checks": [check.plain() for check in self.checks],
            "sessions": self.report.plain(),
            "knocks": self.knocks.plain() if self.knocks else None,
            "windows": {
                name: {key: without_nan(value) for key, value in window.items()}
                for name, window in self.windows.items()
            },
            "tenants": {name: dict(counts) for name, counts in self.tenants.items()},
            "missing": self.played.missing,
            "slots_free_after_s": without_nan(self.played.free_s),
            "slots_leaked": self.played.leaked,
            "samples": [dict(sample) for sample in self.played.samples],
            "moments": [moment.plain() for moment in self.moments],
        }

    def sentences(self) -> str:
        """For a person."""
        lines = [self.report.sentences()]
        for name, window in self.windows.items():
            lines.append(
                f"{name:<10} {window['frames']:.0f} frames, p50 {window['p50_ms']:.1f}  p99 {window['p99_ms']:.1f} ms"
            )
        for name, counts in self.tenants.items():
            lines.append(f"{name:<10} " + ", ".join(f"{count} {what}" for what, count in counts.items()))
        lines += [str(check) for check in self.checks]
        return "\n".join([*lines, f"verdict    {self.verdict}"])


def judged(played: Played, limits: Limits) -> Outcome:
    """Add up and judge."""
    stayed = [account for account in played.accounts if not account.knocked]
    knocked = [account for account in played.accounts if account.knocked]
    seconds = played.course.seconds
    sessions = report(stayed, seconds)
    knocks = report(knocked, seconds) if knocked else None
    windows = {
        name: {"frames": len(trips), "p50_ms": percentile(trips, 0.5), "p99_ms": percentile(trips, 0.99)}
        for name, trips in by_window(played.accounts, played.course.windows()).items()
    }
    checks = [
        *conversation_checks(sessions, limits),
        Check("sessions that the generator lost", played.missing, 0),
        *_checks_of_shape(played, knocked, windows, limits),
    ]
    late_ms = percentile([1_000 * late_s for account in played.accounts for late_s in account.late_s], 0.99)
    return Outcome(
        played=played,
        report=sessions,
        knocks=knocks,
        windows=windows,
        tenants=_by_tenant(played.accounts),
        moments=moments(played.accounts, seconds),
        checks=checks,
        verdict=verdict(checks, late_ms, limits),
    )


def _checks_of_shape(
    played: Played, knocked: Sequence[Account], windows: Mapping[str, Mapping[str, float]], limits: Limits
) -> list[Check]:
    match played.course:
        case Overload():
            return _checks_of_overload(knocked, windows, limits)
        case Churn() as churn:
            return [
                Check("connects that were not made", churn.connects - len(played.accounts), 0),
                Check("slots that were never free again", played.leaked, 0, paced=False),
                Check("until all slots were free", played.free_s, limits.free_s, "s", paced=False),
            ]
        case Soak():
            return _checks_of_soak(played.samples, limits)
        case _:
            return []


def _checks_of_overload(
    knocked: Sequence[Account], windows: Mapping[str, Mapping[str, float]], limits: Limits
) -> list[Check]:
    answers_ms = known(1_000 * account.answered_s for account in knocked)
    turned_away = [account for account in knocked if account.refusal and math.isnan(account.queue_s)]
    quiet_ms, storm_ms = windows["quiet"]["p99_ms"], windows["storm"]["p99_ms"]
    return [
        Check("knocks without an answer", len(knocked) - len(answers_ms), 0),
        Check("answers other than 429, 503 or the queue", sum(a.refusal not in FULL for a in turned_away), 0),
        Check("refusals that do not say when to come again", sum(not a.told_when for a in turned_away), 0, paced=False),
        Check("let in above capacity", sum(not account.refusal for account in knocked), 0, paced=False),
        Check("answer to a knock, p99", percentile(answers_ms, 0.99), limits.refusal_ms, "ms"),
        Check("p99 of those who talk, storm over quiet", storm_ms / quiet_ms if quiet_ms else math.nan, limits.rise),
    ]


def _checks_of_soak(samples: Sequence[Mapping[str, Any]], limits: Limits) -> list[Check]:
    if len(samples) < 2:
        return []
    first, last = samples[len(samples) // 4], samples[-1]
    more = last["descriptors"] - first["descriptors"]
    checks = [Check("descriptors more than after the first quarter", more, limits.more_descriptors, paced=False)]
    if samples[-1]["time_s"] - samples[0]["time_s"] >= limits.slope_after_s:
        checks.append(
            Check("memory's slope", mib_per_hour(samples), limits.mib_per_hour, "MiB/h", paced=False),
        )
    return checks


def mib_per_hour(samples: Sequence[Mapping[str, Any]]) -> float:
    """Slope of the straight line nearest to memory over time, the first quarter left out: caches fill there."""
    settled = samples[len(samples) // 4 :]
    if len(settled) < 2:
        return math.nan
    times_s = [float(sample["time_s"]) for sample in settled]
    sizes = [float(sample["mib"]) for sample in settled]
    mean_s, mean = sum(times_s) / len(times_s), sum(sizes) / len(sizes)
    spread = sum((time_s - mean_s) ** 2 for time_s in times_s)
    return 3_600 * sum((t - mean_s) * (s - mean) for t, s in zip(times_s, sizes, strict=True)) / spread


def _by_tenant(accounts: Sequence[Account]) -> dict[str, dict[str, int]]:
    counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for account in accounts:
        if account.tenant:
            counts[account.tenant].update(asked=1, opened=not account.refusal, refused=bool(account.refusal))
    return {name: dict(counts[name]) for name in sorted(counts)}
