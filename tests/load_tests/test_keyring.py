import collections
import itertools
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from load_tests.keyring import Keyring, in_turn
from serve_app.errors import ConfigError

SECRET = "chorus_a_key_that_nobody_may_see"


def written(folder: Path, text: str, mode: int = 0o600) -> Path:
    path = folder / "keys.yaml"
    path.write_text(text)
    path.chmod(mode)
    return path


@given(st.dictionaries(st.text("abc", min_size=1, max_size=3), st.integers(1, 20), min_size=1), st.integers(0, 200))
def test_nobody_gets_less_than_its_share_rounded_down(weights: dict[str, int], users: int) -> None:
    dealt = collections.Counter(itertools.islice(in_turn(weights), users))
    assert dealt.total() == users
    for name, weight in weights.items():
        assert dealt[name] >= math.floor(users * weight / sum(weights.values()))


def test_a_file_gives_each_user_a_tenant_by_weight_and_its_key(tmp_path: Path) -> None:
    ring = Keyring.read(written(tmp_path, f"acme: {{key: {SECRET}, weight: 3}}\nglobex: {{key: other}}\n"))
    assert [ring.holder(user) for user in range(8)].count("acme") == 6
    assert ring.headers("acme") == {"Authorization": f"Bearer {SECRET}"}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        f"acme: {SECRET}",
        f"acme: {{key: {SECRET}, weight: 0}}",
        f"acme: {{key: {SECRET}, weight: .nan}}",
        f"acme: {{key: {SECRET}, colour: red}}",
        f"acme: {{key: {SECRET}, weight: [",
        "acme: {weight: 1}",
    ],
)
def test_a_wrong_file_is_refused_without_showing_a_key(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError) as raised:
        Keyring.read(written(tmp_path, text))
    assert SECRET not in str(raised.value)


@pytest.mark.parametrize("mode", [0o640, 0o604])
def test_a_file_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    with pytest.raises(ConfigError, match="chmod 600"):
        Keyring.read(written(tmp_path, f"acme: {{key: {SECRET}}}", mode))


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        Keyring.read(tmp_path / "none.yaml")


def test_the_environment_gives_one_key_to_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHORUS_KEY", SECRET)
    ring = Keyring.of_variable()
    assert ring.headers(ring.holder(7)) == {"Authorization": f"Bearer {SECRET}"}
    assert SECRET not in repr(ring)


def test_no_key_is_no_header(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CHORUS_KEY", raising=False)
    ring = Keyring.of_variable()
    assert (ring.holder(3), ring.headers("")) == ("", {})


def test_a_variable_that_was_named_must_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOAD_KEY", raising=False)
    with pytest.raises(ConfigError, match="LOAD_KEY"):
        Keyring.of_variable("LOAD_KEY")
