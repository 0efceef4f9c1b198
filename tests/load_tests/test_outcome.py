import json
import math
from pathlib import Path

import pytest

from load_tests.account import Account
from load_tests.outcome import Outcome, Played, judged, mib_per_hour
from load_tests.publish import draw, facts, page, write
from load_tests.shapes import SETTLE_S, Churn, Course, Overload, Soak, Steady
from load_tests.verdict import Limits, Verdict
from serve_app.units import FRAME_S
from tests.load_tests.test_account import spoken

STEADY = Steady(sessions=2, seconds=1.6)
CHURN = Churn(sessions=2, connects=2, session_s=2.0)
OVERLOAD = Overload(sessions=1, extra=1, seconds=SETTLE_S + 4.0, rounds=1)


def outcome(course: Course, *accounts: Account, **known: float) -> Outcome:
    return judged(Played(shape="any", course=course, accounts=accounts, **known), Limits())  # type: ignore[arg-type]


def failed(judgement: Outcome) -> set[str]:
    return {check.what for check in judgement.checks if not check.good}


def test_a_steady_run_without_a_fault_passes() -> None:
    assert outcome(STEADY, spoken(20), spoken(20)).verdict is Verdict.PASS


def test_nothing_at_all_is_no_pass() -> None:
    assert outcome(STEADY).verdict is Verdict.FAIL


def test_sessions_of_which_nobody_gave_account_fail() -> None:
    assert failed(outcome(STEADY, spoken(20), missing=1)) == {"sessions that the generator lost"}


def test_a_late_generator_is_the_verdict() -> None:
    assert outcome(STEADY, spoken(20, late_s=0.1), spoken(20)).verdict is Verdict.GENERATOR_TOO_SLOW


def test_a_churn_wants_its_slots_back() -> None:
    gone = spoken(20)
    gone.aborted, gone.received = True, gone.received - 1  # its last answer was under way
    assert outcome(CHURN, spoken(20), gone, free_s=2.0).verdict is Verdict.PASS
    leaks = outcome(CHURN, spoken(20), gone, free_s=math.inf, leaked=1)
    assert failed(leaks) == {"slots that were never free again", "until all slots were free"}
    assert leaks.verdict is Verdict.FAIL
    assert failed(outcome(CHURN, spoken(20), free_s=2.0)) == {"connects that were not made"}


def talker(storm_s: float = 0.01) -> Account:
    """Talks from the start to the end; answers take 10 ms in the quiet and something else in the storm."""
    account = Account(open_s=0.01)
    for frame in range(round(OVERLOAD.seconds / FRAME_S)):
        due_s = frame * FRAME_S
        account.frame_sent(due_s, due_s)
        account.audio_received(due_s + (storm_s if due_s >= SETTLE_S + 2.0 else 0.01), 1)
    return account


def knock(answered_s: float = 0.05, refusal: str = "HTTP 503", told_when: bool = True) -> Account:
    return Account(knocked=True, refusal=refusal, answered_s=answered_s, told_when=told_when)


def test_an_overload_passes_when_refusals_are_quick_and_talkers_notice_nothing() -> None:
    judgement = outcome(OVERLOAD, talker(), knock())
    assert judgement.verdict is Verdict.PASS
    assert judgement.knocks is not None
    assert judgement.knocks.refused_p99_ms == pytest.approx(50)


@pytest.mark.parametrize(
    ("talks", "knocks", "why"),
    [
        (talker(), knock(answered_s=0.3), "answer to a knock, p99"),
        (talker(), knock(refusal="HTTP 500"), "answers other than 429, 503 or the queue"),
        (talker(), knock(refusal="ConnectionRefusedError", answered_s=math.nan), "knocks without an answer"),
        (talker(), knock(told_when=False), "refusals that do not say when to come again"),
        (talker(storm_s=0.012), knock(), "p99 of those who talk, storm over quiet"),
    ],
)
def test_each_fault_of_an_overloaded_server_has_its_check(talks: Account, knocks: Account, why: str) -> None:
    assert why in failed(outcome(OVERLOAD, talks, knocks))


def test_a_place_in_the_queue_is_an_answer() -> None:
    queued = Account(knocked=True, refusal="left the queue", answered_s=0.02, queue_s=1.5)
    judgement = outcome(OVERLOAD, talker(), queued)
    assert judgement.verdict is Verdict.PASS
    assert judgement.knocks is not None
    assert (judgement.knocks.queued, judgement.knocks.queue_max_s) == (1, 1.5)


def test_who_is_let_in_above_capacity_is_a_fault() -> None:
    assert "let in above capacity" in failed(outcome(OVERLOAD, talker(), Account(knocked=True, open_s=0.1)))


def samples(seconds: float, growth: float, descriptors: int = 0) -> list[dict[str, float]]:
    times_s = [seconds * n / 20 for n in range(21)]
    return [{"time_s": t, "mib": 500 + growth * t / 3_600, "descriptors": 100 + descriptors * (t > 0.9 * seconds)}
            for t in times_s]  # fmt: skip


def soaked(taken: list[dict[str, float]]) -> Outcome:
    course = Soak(sessions=1, seconds=1_800.0, session_s=60.0)
    return judged(Played(shape="soak", course=course, accounts=[spoken(20)], samples=taken), Limits())


def test_a_soak_measures_the_slope_of_memory_and_the_descriptors() -> None:
    assert mib_per_hour(samples(1_800, 3.5)) == pytest.approx(3.5)
    assert soaked(samples(1_800, 0.9)).verdict is Verdict.PASS
    assert failed(soaked(samples(1_800, 1.1))) == {"memory's slope"}
    assert failed(soaked(samples(1_800, 0.0, 40))) == {"descriptors more than after the first quarter"}


def test_a_short_soak_says_nothing_about_the_slope() -> None:
    assert soaked(samples(60, 500.0)).verdict is Verdict.PASS


def test_tenants_are_counted_apart() -> None:
    acme, other, refused = spoken(20), spoken(20), Account(refusal="HTTP 429", tenant="globex")
    acme.tenant, other.tenant = "acme", "globex"
    assert outcome(STEADY, acme, other, refused).tenants == {
        "acme": {"asked": 1, "opened": 1, "refused": 0},
        "globex": {"asked": 2, "opened": 1, "refused": 1},
    }


def test_the_moments_hold_every_frame_and_every_refusal() -> None:
    refused = Account(refusal="HTTP 503", tried_s=0.5)
    judgement = outcome(STEADY, spoken(20), spoken(20), refused)
    assert sum(moment.frames for moment in judgement.moments) == 40
    assert sum(moment.refused for moment in judgement.moments) == 1


def test_the_reports_say_verdict_numbers_and_facts(tmp_path: Path) -> None:
    judgement = judged(
        Played(shape="steady", course=STEADY, accounts=[spoken(20)], facts=facts("http://user:secret@host:1")), Limits()
    )
    write(judgement, tmp_path / "new")
    told = json.loads((tmp_path / "new" / "report.json").read_text())
    assert (told["verdict"], told["exit_status"], told["shape"]) == ("pass", 0, "steady")
    assert told["sessions"]["frames_sent"] == 20
    assert told["facts"]["server"] == "host:1"
    html = (tmp_path / "new" / "report.html").read_text()
    assert '<span class="pass">pass</span>' in html
    assert "latency p99" in html
    assert "data:image/png;base64," in html
    assert "secret" not in html + json.dumps(told)


def test_the_picture_is_one_even_of_nothing(tmp_path: Path) -> None:
    assert draw([], "nothing", tmp_path / "none.png")
    assert (tmp_path / "none.png").read_bytes().startswith(b"\x89PNG")


def test_a_page_without_a_picture_says_why() -> None:
    assert "matplotlib" in page(outcome(STEADY, spoken(20)), b"")


def test_names_from_outside_are_escaped_on_the_page() -> None:
    account = spoken(20)
    account.tenant = "<script>"
    assert "<script>" not in page(outcome(STEADY, account), b"")
