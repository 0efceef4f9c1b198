"""Questions, answers and reports cross processes whole."""

import pickle

import pytest

from serve_app.admission.answers import AdmissionRequest, EngineName, Granted, Refused, Wait
from serve_app.admission.views import EngineView, LiveSession, Orders
from serve_app.errors import (
    ChorusError,
    DaySpent,
    EngineLost,
    Forbidden,
    LedgerError,
    ModelUnknown,
    NotAllowed,
    QueueFull,
    TooManySessions,
    TooManyStarts,
    TooManyTickets,
)
from serve_app.units import SessionId

REQUEST = AdmissionRequest(SessionId("s"), "acme", "moshi", 2, frozenset({"text_topk"}), 3.0)
ERRORS = [
    NotAllowed("no"), Forbidden("model 'x'"), ModelUnknown("x"), TooManySessions(5, 1.0), TooManyStarts(30, 2.0),
    DaySpent(60.0, 3.0), TooManyTickets(9, 30.0), QueueFull(7, 4.0), EngineLost(), LedgerError("OperationalError"),
]  # fmt: skip


@pytest.mark.parametrize(
    "value",
    [
        REQUEST,
        Granted(REQUEST, EngineName("e"), 5.0, 3_600.0),
        Wait(3, 41.0, 1.0),
        EngineView(EngineName("e"), "moshi", 8, (LiveSession(SessionId("s"), "acme", 2, 1.5),)),
        Orders((SessionId("s"),)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_value_is_the_same_on_the_other_side(value: object) -> None:
    assert pickle.loads(pickle.dumps(value)) == value


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_a_refusal_keeps_its_words_status_and_time(error: ChorusError) -> None:
    there = pickle.loads(pickle.dumps(Refused(error))).error
    assert type(there) is type(error)
    assert (str(there), there.http_status, there.reason) == (str(error), error.http_status, error.reason)
    assert there.retry_after_s == error.retry_after_s


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_a_refusal_with_a_time_is_one_that_may_be_tried_again(error: ChorusError) -> None:
    assert error.retry or error.retry_after_s is None
