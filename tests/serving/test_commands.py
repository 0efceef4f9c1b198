"""The commands that people type: how they start, what they say, how they end."""

import asyncio
import functools
import json
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import yaml

from serve_app import cli
from serve_app.config import KEY_VARIABLE
from serve_app.serving.environment import free_port
from tests.serving.cluster import ROOT, START_S, Cluster, changed, eventually, running, up
from tests.serving.conversation import tone, visit

DEMO_CHECKPOINT = ROOT / "serve_app" / "demo" / "checkpoint"
STOP_S = 10.0
KEY = "a-key-of-enough-length"


async def speak(cluster: Cluster, frames: int = 25) -> int:
    """Hold a conversation of so many frames. Returns how many audio messages came back."""
    async with visit(cluster.chat) as visitor:
        listening = asyncio.create_task(visitor.listen())
        await visitor.say_in_real_time(tone(440, frames))
        await asyncio.sleep(0.5)
        listening.cancel()
        await asyncio.wait({listening})
    return visitor.messages


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Open to other hosts, with a key. The last test of this file that takes it ends it."""
    folder = tmp_path_factory.mktemp("guarded")
    with up(changed("passthrough.yaml", folder, http={"host": "0.0.0.0"}), {KEY_VARIABLE: KEY}) as cluster:
        yield cluster


def test_beyond_loopback_a_key_is_asked_for_and_taken_in_a_header_or_the_query(guarded: Cluster) -> None:
    async def talk(cluster: Cluster) -> None:
        with pytest.raises(Exception, match="401"):
            await speak(cluster, 1)
        async with visit(cluster.chat, additional_headers={"Authorization": f"Bearer {KEY}"}):
            pass
        async with visit(f"{cluster.chat}?worker_auth_id={KEY}"):
            pass
        status, body = await asyncio.to_thread(cluster.get, "/info")
        assert (status, body["reason"]) == (401, "not_allowed")
        assert [(await asyncio.to_thread(cluster.get, path))[0] for path in ("/health", "/ready")] == [200, 200]
        assert (await asyncio.to_thread(cluster.get, f"/info?auth_id={KEY}"))[1]["model"] == "pass-through"

    asyncio.run(talk(guarded))


def test_ctrl_c_tells_visitors_and_leaves_nothing_behind_and_no_key_in_any_line(guarded: Cluster) -> None:
    async def talk() -> float:
        async with visit(guarded.chat, additional_headers={"Authorization": f"Bearer {KEY}"}) as visitor:
            await visitor.say(tone(440, 1))
            began_s = time.monotonic()
            guarded.family.look()
            guarded.process.send_signal(signal.SIGINT)
            await visitor.listen()
        assert (visitor.close_code, visitor.close_reason) == (1012, "draining")
        return began_s

    began_s = asyncio.run(talk())
    assert guarded.process.wait(STOP_S) == 0
    assert time.monotonic() - began_s <= STOP_S
    assert guarded.family.left() == []
    assert "Traceback" not in guarded.output
    assert KEY not in guarded.output


@pytest.mark.slow
def test_serve_run_beyond_loopback_without_a_key_starts_neither_application(tmp_path: Path) -> None:
    config = changed("passthrough.yaml", tmp_path, http={"port": free_port("127.0.0.1", 0), "host": "0.0.0.0"})
    with running([str(Path(sys.executable).parent / "serve"), "run", str(config)], {KEY_VARIABLE: ""}) as (_, lines):
        for application in ("engine", "gateway"):
            eventually(functools.partial(_refused, lines, application), START_S)


def _refused(lines: Sequence[str], application: str) -> bool:
    """Whether Ray has said that an application failed, and we why."""
    said = "\n".join(lines)
    return f"0.0.0.0 is not loopback: set a key in {KEY_VARIABLE}" in said and application in said


def test_serve_run_of_prod_with_three_values_replaced_holds_a_conversation_and_warns_of_the_slow_proxy(
    tmp_path: Path,
) -> None:
    replaced = {"checkpoint": {"folder": str(DEMO_CHECKPOINT)}, "device": "cpu", "num_gpus": 0}
    port = free_port("127.0.0.1", 0)
    config = changed("prod.yaml", tmp_path, replaced, http={"port": port})
    with running([str(Path(sys.executable).parent / "serve"), "run", str(config)]) as (process, lines):
        cluster = Cluster(process, lines, port)
        eventually(lambda: process.poll() is not None or cluster.ready(), START_S)
        assert asyncio.run(speak(cluster)) > 0
        info = cluster.info()
        assert info["proxy_mode"] == "python"
        assert "serve_app up" in cluster.output
        for told in ("stage_ms", "ms_per_frame"):
            assert set(info["engines"][0][told]) >= {"encode", "lm", "depformer", "decode"}
        assert info["model"] == DEMO_CHECKPOINT.name
        assert info["bit_rate"]["raw_to_tokens"] > 100


@pytest.mark.parametrize("name", ["demo.yaml", "passthrough.yaml", "prod.yaml"])
def test_a_shipped_file_is_what_ray_expects(name: str) -> None:
    from ray.serve.schema import ServeDeploySchema

    schema = ServeDeploySchema.model_validate(yaml.safe_load((ROOT / "configs" / name).read_text()))
    assert [application.name for application in schema.applications] == ["engine", "gateway"]
    assert schema.http_options.host == "127.0.0.1"


@pytest.mark.parametrize("name", ["demo.yaml", "passthrough.yaml", "prod.yaml"])
def test_both_builders_take_what_a_shipped_file_says(name: str) -> None:
    from ray.serve import Application

    from serve_app.serving import engine_app, gateway_app

    engine, gateway = yaml.safe_load((ROOT / "configs" / name).read_text())["applications"]
    assert isinstance(engine_app.build(engine["args"]), Application)
    assert isinstance(gateway_app.build(gateway["args"]), Application)


def test_a_wrong_file_ends_the_command_with_the_file_and_the_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = changed("passthrough.yaml", tmp_path, {"slotz": 3})
    assert cli.main(["up", str(path)]) == 2
    said = capsys.readouterr().err
    assert str(path) in said
    assert "slotz: unknown key" in said


def test_other_hosts_without_a_key_end_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    path = changed("passthrough.yaml", tmp_path, http={"host": "0.0.0.0"})
    assert cli.main(["up", str(path)]) == 2
    assert KEY_VARIABLE in capsys.readouterr().err


@pytest.mark.parametrize("missing", ["model.safetensors", "tokenizer.model", "."])
def test_a_checkpoint_that_is_not_whole_ends_the_command_with_what_is_missing(
    missing: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    for name in ("model.safetensors", "mimi.safetensors", "tokenizer.model"):
        (folder / name).touch()
    names = {"moshi_name": "model.safetensors", "mimi_name": "mimi.safetensors", "tokenizer_name": "tokenizer.model"}
    (folder / "config.json").write_text(json.dumps(names))
    (folder / missing).rename(tmp_path / "elsewhere")
    path = changed("demo.yaml", tmp_path, {"checkpoint": {"folder": str(folder)}})
    assert cli.main(["up", str(path)]) == 2
    said = capsys.readouterr().err
    assert str(folder) in said
    assert (missing if missing != "." else "no such folder") in said


@pytest.mark.parametrize("command", ["talk", "plan"])
def test_other_commands_read_their_own_arguments(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main([command, "--help"])
    assert left.value.code == 0
    assert f"serve_app {command}" in capsys.readouterr().out
