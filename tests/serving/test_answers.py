"""What a question that cannot be answered is told."""

from serve_app.admission.tenants import Tenant
from serve_app.errors import Forbidden, ModelUnknown, NotAllowed, ParameterRefused
from serve_app.serving.answers import discreet

LIMITED = Tenant(name="acme", models=frozenset({"a", "b"}))
WRONG = ParameterRefused("text_topk", "no", "not a whole number")


def test_whom_we_do_not_know_learns_nothing_of_models_and_parameters() -> None:
    stranger = NotAllowed("missing or wrong key")
    for error in (WRONG, ModelUnknown("x", ["a", "b"])):
        assert discreet(error, stranger, "a") is stranger


def test_a_tenant_hears_only_of_the_models_that_it_may_use() -> None:
    told = discreet(ModelUnknown("b", ["a", "c"]), LIMITED, "b")
    assert isinstance(told, ModelUnknown)
    assert told.known == ("a",)


def test_a_model_that_is_not_the_tenants_is_forbidden_whether_there_is_one_or_not() -> None:
    for error in (WRONG, ModelUnknown("c", ["a", "b"])):
        assert isinstance(discreet(error, LIMITED, "c"), Forbidden)


def test_what_is_wrong_with_a_permitted_question_is_said() -> None:
    assert discreet(WRONG, LIMITED, "a") is WRONG
    assert discreet(WRONG, Tenant(name="any"), None) is WRONG
