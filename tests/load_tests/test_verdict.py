import math
import random

from hypothesis import given
from hypothesis import strategies as st

from load_tests.account import LEFT_THE_QUEUE, STILL_WAITING, Account, report
from load_tests.verdict import Check, Limits, Verdict, conversation_checks, verdict
from tests.load_tests.test_account import spoken

LIMITS = Limits()
VALUES = st.floats(0.0, 500.0) | st.just(math.nan) | st.just(math.inf)
CHECKS = st.lists(st.builds(Check, st.just("x"), VALUES, st.floats(0.0, 400.0), paced=st.booleans()), max_size=6)
LATE_MS = st.floats(0.0, 300.0) | st.just(math.nan)


@given(CHECKS, st.floats(80.01, 10_000.0))
def test_a_late_generator_never_passes_a_server(checks: list[Check], late_ms: float) -> None:
    assert verdict(checks, late_ms, LIMITS) is not Verdict.PASS


@given(CHECKS, LATE_MS)
def test_a_pass_means_that_every_check_is_good(checks: list[Check], late_ms: float) -> None:
    passed = verdict(checks, late_ms, LIMITS) is Verdict.PASS
    assert passed == (bool(checks) and all(check.good for check in checks) and not late_ms > 80)


@given(CHECKS, LATE_MS, st.randoms(use_true_random=False))
def test_the_order_of_checks_is_nothing(checks: list[Check], late_ms: float, chance: random.Random) -> None:
    shuffled = chance.sample(checks, len(checks))
    assert verdict(shuffled, late_ms, LIMITS) is verdict(checks, late_ms, LIMITS)


@given(CHECKS, LATE_MS, st.booleans())
def test_another_failure_never_makes_a_pass(checks: list[Check], late_ms: float, paced: bool) -> None:
    assert verdict([*checks, Check("worse", 2.0, 1.0, paced=paced)], late_ms, LIMITS) is not Verdict.PASS


@given(CHECKS, LATE_MS)
def test_what_no_generator_can_cause_fails_however_late_it_was(checks: list[Check], late_ms: float) -> None:
    leaked = Check("slots leaked", 1.0, 0.0, paced=False)
    assert verdict([*checks, leaked], late_ms, LIMITS) is Verdict.FAIL


@given(st.floats(allow_nan=False))
def test_nothing_measured_is_not_good(limit: float) -> None:
    assert not Check("x", math.nan, limit).good


def test_the_verdicts_are_the_exit_statuses() -> None:
    assert [int(value) for value in (Verdict.PASS, Verdict.FAIL, Verdict.GENERATOR_TOO_SLOW)] == [0, 1, 2]


def test_good_conversations_pass_every_check() -> None:
    checks = conversation_checks(report([spoken(50), spoken(50)], 4.0), LIMITS)
    assert verdict(checks, 3.0, LIMITS) is Verdict.PASS


def failing(account: Account) -> set[str]:
    checks = conversation_checks(report([spoken(50), account], 4.0), LIMITS)
    return {check.what for check in checks if not check.good}


def test_each_rule_has_its_check() -> None:
    ended = spoken(50)
    ended.ending = "close 1011"
    assert failing(Account(refusal="HTTP 503")) == {"sessions that were not let in"}
    assert failing(Account(refusal=LEFT_THE_QUEUE)) == {"sessions that were not let in"}
    assert failing(Account(refusal=STILL_WAITING)) == set()
    assert failing(ended) == {"sessions that ended early"}
    assert failing(spoken(50, lost=1)) == {"frames lost"}
    assert "latency p99" in failing(spoken(50, latency_s=0.25))
    assert "frames behind at worst" in failing(spoken(50, latency_s=0.5))


def test_silence_of_one_session_is_not_hidden_by_the_others() -> None:
    account = spoken(3)
    for now_s in (10.0, 10.6):  # 520 ms after its turn, of which 10 are slack
        account.frame_sent(now_s - 0.01, now_s - 0.01)
        account.audio_received(now_s, 1)
    assert "underrun of the worst session" in failing(account)
