"""The tenants' file is known to the last key; a wrong one changes nothing and says so."""

import logging
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.accounts.tenants_file import TenantsFile, read_tenants
from serve_app.admission.tenants import Tenant
from serve_app.errors import ConfigError

GOOD = """
tenants:
  acme:
    weight: 2
    concurrent_sessions: 20
    models: [moshi]
    origins: ["https://acme.example"]
  small: {}
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "tenants.yaml"
    path.write_text(text)
    return path


def test_what_is_written_is_read_and_the_rest_are_defaults(tmp_path: Path) -> None:
    tenants = read_tenants(write(tmp_path, GOOD))
    assert list(tenants) == [
        Tenant(
            name="acme",
            weight=2,
            concurrent_sessions=20,
            models=frozenset({"moshi"}),
            origins=frozenset({"https://acme.example"}),
        ),
        Tenant(name="small"),
    ]


WRONG = {
    "tenants: {acme: {wieght: 2}}": "tenants.acme.wieght: unknown key",
    "tenants: {acme: {weight: 0}}": "tenants.acme.weight",
    "tenants: {acme: {weight: .nan}}": "tenants.acme.weight",
    "tenants: {acme: {weight: .inf}}": "tenants.acme.weight",
    "tenants: {acme: {weight: heavy}}": "tenants.acme.weight",
    "tenants: {acme: {concurrent_sessions: -1}}": "tenants.acme.concurrent_sessions",
    "tenants: {acme: {concurrent_sessions: 1.5}}": "tenants.acme.concurrent_sessions",
    "tenants: {acme: {sessions_per_minute: 0}}": "tenants.acme.sessions_per_minute",
    "tenants: {acme: {audio_s_per_day: -1}}": "tenants.acme.audio_s_per_day",
    "tenants: {acme: {audio_s_per_day: .inf}}": "tenants.acme.audio_s_per_day",
    "tenants: {acme: {longest_s: 90000}}": "tenants.acme.longest_s",
    "tenants: {acme: {models: moshi}}": "tenants.acme.models",
    "tenants: {acme: {origins: ['*']}}": "tenants.acme.origins",
    "tenants: {acme: {origins: ['https://a.example/path']}}": "tenants.acme.origins",
    "tenants: {../acme: {}}": "tenants.../acme",
    "tenants: {a/b: {}}": "tenants.a/b",
    "tenants: {'': {}}": "tenants.",
    "tenants: {1: {}}": "tenants.1",
    "tenants: {acme: {}, acme: {weight: 9}}": "'acme' twice",
    "tenants: {acme: null}": "tenants.acme",
    "tenants: []": "tenants",
    "tenant: {}": "tenant: unknown key",
    "": "must be a mapping",
    "[": "is not YAML",
    "tenants: &a {acme: *a}": "tenants.yaml",
    "tenants: {acme: !!python/object:os.system {}}": "is not YAML",
    "2026-13-45": "is not YAML",
    "[" * 5_000: "is not YAML",
}


@pytest.mark.parametrize("text", WRONG, ids=lambda text: text[:40])
def test_a_wrong_file_is_refused_by_file_and_key(text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        read_tenants(write(tmp_path, text))
    assert WRONG[text] in str(caught.value)
    assert "tenants.yaml" in str(caught.value)


@given(content=st.binary(max_size=200))
def test_any_bytes_raise_nothing_but_a_config_error(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("tenants") / "tenants.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError):
        read_tenants(path)


def test_a_reload_takes_what_changed(tmp_path: Path) -> None:
    file = TenantsFile(write(tmp_path, GOOD))
    before = file.tenants
    write(tmp_path, "tenants: {small: {weight: 3}}")
    after = file.reload()
    assert [tenant.name for tenant in before] == ["acme", "small"]
    assert list(after) == list(file.tenants) == [Tenant(name="small", weight=3)]


@pytest.mark.parametrize("text", ["tenants: {small: {wieght: 3}}", "", None])
def test_a_wrong_reload_keeps_the_old_tenants_and_is_loud(
    text: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path, GOOD)
    file = TenantsFile(path)
    before = file.tenants
    path.unlink() if text is None else path.write_text(text)
    with caplog.at_level(logging.ERROR, "serve_app"), pytest.raises(ConfigError):
        file.reload()
    assert file.tenants is before
    assert str(path) in caplog.text


def test_a_huge_file_is_refused_before_it_is_parsed(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="bytes"):
        read_tenants(write(tmp_path, "#" * (5 << 20)))
