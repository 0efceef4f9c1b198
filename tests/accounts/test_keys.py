"""Keys on disk: written whole, for the owner alone, without a secret; and the command that does it."""

import json
import multiprocessing
import secrets
import stat
from pathlib import Path

import pytest

from serve_app import cli
from serve_app.accounts.keys_file import KeysFile
from serve_app.errors import ConfigError, NotAllowed
from tests.admission.clock import Clock, counted_bytes

ID, DIGEST = "0" * 12, "0" * 64


def file_in(folder: Path, clock: Clock | None = None) -> KeysFile:
    return KeysFile(folder / "keys.json", clock or Clock(), counted_bytes())


def test_a_created_key_opens_after_a_restart(tmp_path: Path) -> None:
    new = file_in(tmp_path).create("acme")
    assert file_in(tmp_path).ring().verify(new.text) == new.record


def test_the_file_is_its_owners_alone_and_holds_no_secret(tmp_path: Path) -> None:
    file = file_in(tmp_path)
    new = file.create("acme")
    file.create("other")
    path = tmp_path / "keys.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert new.text.split("_", 2)[2] not in path.read_text()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["keys.json", "keys.json.lock"]


def test_a_revoked_key_opens_nothing_and_keeps_its_first_date(tmp_path: Path) -> None:
    clock = Clock(500.0)
    file = file_in(tmp_path, clock)
    new = file.create("acme")
    file.revoke(new.record.key)
    clock.now_s = 600.0
    assert file.revoke(new.record.key).revoked_s == 500.0
    with pytest.raises(NotAllowed):
        file.ring().verify(new.text)


def test_an_unknown_id_cannot_be_revoked(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no key"):
        file_in(tmp_path).revoke("0" * 12)


def test_a_file_that_others_may_write_is_refused(tmp_path: Path) -> None:
    file = file_in(tmp_path)
    file.create("acme")
    (tmp_path / "keys.json").chmod(0o620)
    with pytest.raises(ConfigError, match="chmod 600"):
        file.ring()


def test_an_id_that_is_drawn_twice_is_drawn_again(tmp_path: Path) -> None:
    draws = iter([b"\1" * 6, b"a" * 32, b"\1" * 6, b"b" * 32, b"\2" * 6, b"c" * 32])
    file = KeysFile(tmp_path / "keys.json", Clock(), lambda count: next(draws))
    assert [file.create("acme").record.key for _ in range(2)] == ["01" * 6, "02" * 6]


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "null",
     '{"version": 2, "keys": []}', '{"version": 1}', '{"version": 1, "keys": [{}]}', "[" * 10_000,
     '{"version": 1, "keys": [{"key": "x", "tenant": "a", "digest": "b", "created_s": 0}]}',
     '{"version": 1, "keys": [{"key": "' + ID + '", "tenant": "../a", "digest": "' + DIGEST + '", "created_s": 0}]}',
     '{"version": 1, "keys": [{"key": "' + ID + '", "tenant": "a", "digest": "' + DIGEST + '"}]}',
     '{"version": 1, "keys": [{"key": "' + ID + '", "tenant": "a", "digest": "x", "created_s": 0}]}',
     ],
    ids=lambda text: text[:30],
)  # fmt: skip
def test_a_wrong_file_is_refused_by_name_and_never_overwritten(content: str, tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    path.write_text(content)
    path.chmod(0o600)
    file = file_in(tmp_path)
    with pytest.raises(ConfigError, match=r"keys\.json"):
        file.ring()
    with pytest.raises(ConfigError):
        file.create("acme")
    assert path.read_text() == content


def test_an_id_that_stands_there_twice_is_refused(tmp_path: Path) -> None:
    file = file_in(tmp_path)
    file.create("acme")
    path = tmp_path / "keys.json"
    tree = json.loads(path.read_text())
    path.write_text(json.dumps({"version": 1, "keys": tree["keys"] * 2}))
    with pytest.raises(ConfigError, match="twice"):
        file.ring()


def create_some(path: Path) -> None:
    file = KeysFile(path, Clock(), secrets.token_bytes)
    for _ in range(10):
        file.create("acme")


def test_processes_that_create_at_once_lose_no_key(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=create_some, args=(tmp_path / "keys.json",)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert len(file_in(tmp_path).read()) == 30


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    status = cli.main(["keys", *words])
    return status, *capsys.readouterr()


def test_an_operator_creates_lists_and_revokes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = ["--file", str(tmp_path / "keys.json")]
    status, text, told = run(capsys, *file, "create", "acme", "--days", "30")
    assert status == 0
    assert text.startswith("chorus_")
    key = text.split("_")[1]
    secret = text.strip().split("_", 2)[2]
    assert key in told
    assert secret not in told

    _, listed, _ = run(capsys, *file, "list")
    assert key in listed
    assert "valid until" in listed
    assert secret not in listed

    assert run(capsys, *file, "revoke", key)[0] == 0
    assert "revoked" in run(capsys, *file, "list", "acme")[1]
    assert run(capsys, *file, "list", "other")[1] == ""


def test_a_wrong_id_is_one_line_and_a_status(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, _, told = run(capsys, "--file", str(tmp_path / "keys.json"), "revoke", "nobody")
    assert status == 2
    assert told.count("\n") == 1


@pytest.mark.parametrize("words", ["../acme", "acme --days nan", "acme --days -1", "acme --days x"])
def test_a_wrong_argument_writes_nothing(words: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        cli.main(["keys", "--file", str(tmp_path / "keys.json"), "create", *words.split()])
    assert not list(tmp_path.iterdir())
