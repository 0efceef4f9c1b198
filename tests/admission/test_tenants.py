"""A tenant gets the models, parameters and origins of its own and nothing else."""

import pytest

from serve_app.admission.tenants import Tenant, Tenants
from serve_app.errors import Forbidden, NotAllowed

ACME = Tenant(
    name="acme",
    models=frozenset({"moshi"}),
    parameters=frozenset({"text_topk"}),
    origins=frozenset({"https://acme.example"}),
)


def test_a_tenant_without_lists_may_ask_for_everything() -> None:
    anyone = Tenant(name="open")
    anyone.permit("any", ["text_topk", "audio_topk"])
    assert anyone.may_use("any")


def test_a_model_that_is_not_listed_is_forbidden() -> None:
    with pytest.raises(Forbidden, match="'parrot'"):
        ACME.permit("parrot", [])


def test_a_parameter_that_is_not_listed_is_forbidden_by_name() -> None:
    ACME.permit("moshi", ["text_topk"])
    with pytest.raises(Forbidden, match="'voice'"):
        ACME.permit("moshi", ["text_topk", "voice"])


@pytest.mark.parametrize("origin", ["https://acme.example", "https://ACME.example/", None])
def test_own_pages_and_programs_pass(origin: str | None) -> None:
    ACME.permit_origin(origin)


@pytest.mark.parametrize(
    "origin",
    [
        "",
        "null",
        "http://acme.example",
        "https://acme.example.evil",
        "https://acme.example:444",
        "https://evil/acme.example",
    ],
)
def test_a_foreign_page_is_forbidden(origin: str) -> None:
    with pytest.raises(Forbidden):
        ACME.permit_origin(origin)


def test_a_tenant_that_is_not_there_is_not_allowed() -> None:
    tenants = Tenants([ACME])
    assert tenants.require("acme") is ACME
    with pytest.raises(NotAllowed):
        tenants.require("../acme")
