import asyncio
import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from websockets.asyncio.server import ServerConnection
from websockets.http11 import Request, Response

from load_tests.run import NOT_RUN, command, main
from serve_app.serving.environment import free_port
from tests.client.echo import EchoServer, Refusal, _response
from tests.client.loop import in_loop
from tests.serving.cluster import WAIT_S, eventually

ROOT = Path(__file__).parents[2]
SECRET = "chorus_a_key_that_nobody_may_see"


@dataclasses.dataclass
class SmallServer(EchoServer):
    """One with as many slots as it says, and a queue where told so."""

    slots: int = 2
    busiest: int = 0

    def _http(self, connection: ServerConnection, request: Request) -> Response | None:
        used = len([known for known in self.connections if known.state.name == "OPEN"])
        self.busiest = max(self.busiest, used)
        path = urlsplit(request.path).path
        if path == "/info":
            return _response(Refusal(200, json.dumps({"slots": self.slots, "slots_used": used}), {}))
        if path == "/api/chat" and used >= self.slots:
            return _response(Refusal())
        return super()._http(connection, request)


async def played(
    folder: Path, *words: str, env: dict[str, str] | None = None
) -> tuple[int | None, dict[str, Any], str]:
    """Exit status, report and all that was said of a run."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "load_tests.run", *words, "--out", str(folder)),
        cwd=ROOT,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    said = (await process.communicate())[0].decode()
    path = folder / "report.json"
    assert path.exists(), said
    return process.returncode, json.loads(path.read_text()), said


@in_loop
async def test_locust_runs_the_same_conversations(tmp_path: Path) -> None:
    async with EchoServer(delay_frames=1).running() as server:
        status, told, said = await played(
            tmp_path, *("steady", "--url", server.url, "--sessions", "2", "--seconds", "0.8", "--report-json")
        )
    sessions = told["sessions"]
    assert (sessions["opened"], sessions["frames_sent"], sessions["frames_lost"]) == (2, 20, 0), said
    assert status == 0, said
    line = next(line for line in said.splitlines() if line.startswith("{"))
    assert json.loads(line) == sessions
    assert "<html" in (tmp_path / "locust.html").read_text()
    assert (tmp_path / "latency.png").exists()


@in_loop
async def test_two_workers_overload_a_small_server_and_one_report_holds_all(tmp_path: Path) -> None:
    async with SmallServer().running() as server:
        words = ("--extra", "3", "--rounds", "1", "--burst-s", "0.2", "--seconds", "5", "--workers", "2")
        _, told, said = await played(tmp_path, "overload", "--url", server.url, "--sessions", "0", *words)
    assert (told["course"]["sessions"], told["sessions"]["opened"], told["missing"]) == (2, 2, 0), said
    assert told["knocks"]["refusals"] == {"HTTP 503": 3}, said
    assert told["knocks"]["refused_p99_ms"] > 0
    assert told["windows"]["quiet"]["frames"] > 0 < told["windows"]["storm"]["frames"]


@in_loop
async def test_a_churn_aborts_a_quarter_and_asks_for_its_slots(tmp_path: Path) -> None:
    keys = tmp_path / "keys.yaml"
    keys.write_text(f"acme: {{key: {SECRET}}}\n")
    keys.chmod(0o600)
    async with SmallServer(slots=4).running() as server:
        words = ("--sessions", "2", "--connects", "8", "--session-s", "0.2", "--tenants-keys", str(keys))
        _, told, said = await played(tmp_path, "churn", "--url", server.url, *words)
    assert (told["sessions"]["opened"], told["sessions"]["aborted"], told["slots_leaked"]) == (8, 2, 0), said
    assert told["tenants"] == {"acme": {"asked": 8, "opened": 8, "refused": 0}}
    assert server.authorizations == [f"Bearer {SECRET}"] * 8
    assert SECRET not in said + json.dumps(told)


def test_no_key_is_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOAD_KEY", SECRET)
    line = command(["steady", "--key-env", "LOAD_KEY", "--workers", "2", "--out", str(tmp_path)])
    assert SECRET not in " ".join(line)
    assert "LOAD_KEY" in line
    assert line[line.index("--processes") + 1] == "2"


@pytest.mark.parametrize(
    "words",
    [
        ("steady", "--sessions", "0"),
        ("steady", "--tenants-keys", "/nonexistent.yaml"),
        ("churn", "--url", "http://127.0.0.1:9"),
        ("overload", "--sessions", "0", "--url", "http://127.0.0.1:9"),
    ],
)
def test_what_cannot_be_run_is_told_in_one_line(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == NOT_RUN
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_word_that_nobody_knows_is_no_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["wobble"])
    assert left.value.code == NOT_RUN
    assert "wobble" in capsys.readouterr().err


def test_callers_end_with_the_command_that_was_told_to_end(tmp_path: Path) -> None:
    nobody = f"http://127.0.0.1:{free_port('127.0.0.1', 0)}"
    words = [
        sys.executable,
        "-m",
        "load_tests.run",
        "steady",
        "--url",
        nobody,
        "--seconds",
        "600",
        "--out",
        str(tmp_path),
    ]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        eventually(children.read_text, WAIT_S)
        process.terminate()
        process.communicate(timeout=WAIT_S)  # until nobody holds its output any more, Locust included
