"""A configuration is known to the last key, or nothing starts."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from serve_app import config
from serve_app.config import EngineSettings, GatewaySettings, checked, is_loopback, read_config
from serve_app.engine.limits import Limits, Pace
from serve_app.errors import ConfigError

SHIPPED = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
KEY = "sixteen-letters-1"


def passthrough() -> dict[str, Any]:
    content = yaml.safe_load(next(path for path in SHIPPED if path.name == "passthrough.yaml").read_text())
    assert isinstance(content, dict)
    return content


def write(folder: Path, content: object) -> Path:
    path = folder / "some.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_a_shipped_file_reads_and_stays_on_loopback(path: Path) -> None:
    read = read_config(path)
    assert read.serve.http_options.loopback
    assert read.engine.slots >= 1


def test_prod_pins_a_commit_and_reserves_one_gpu() -> None:
    engine = read_config(next(path for path in SHIPPED if path.name == "prod.yaml")).engine
    assert engine.checkpoint is not None
    assert engine.checkpoint.revision is not None
    assert len(engine.checkpoint.revision) == 40
    assert (engine.num_gpus, engine.dtype) == (1, "bfloat16")


@pytest.mark.parametrize("level", ["file", "http_options", "engine", "gateway"])
def test_an_unknown_key_is_refused_with_its_file_and_name(tmp_path: Path, level: str) -> None:
    content = passthrough()
    args = {application["name"]: application["args"] for application in content["applications"]}
    {"file": content, "http_options": content["http_options"], **args}[level]["colour"] = "red"
    path = write(tmp_path, content)
    with pytest.raises(ConfigError, match="colour: unknown key") as caught:
        read_config(path)
    assert str(path) in str(caught.value)


def test_every_problem_is_named_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        checked(EngineSettings, {"slots": 0, "dtype": "int4", "runner": "passthrough"}, "here")
    assert "slots: " in str(caught.value)
    assert "dtype: " in str(caught.value)


@pytest.mark.parametrize(
    "args",
    [
        {"runner": "model"},
        {"runner": "passthrough", "checkpoint": {"folder": "x"}},
        {"checkpoint": {}},
        {"checkpoint": {"folder": "x", "repository": "a/b", "revision": "c"}},
        {"checkpoint": {"repository": "a/b"}},
        {"runner": "passthrough", "alarm_s": 6, "exit_s": 5},
        {"runner": "passthrough", "link": {"first_port": 9, "last_port": 8}},
        {"runner": "passthrough", "link": {"first_port": 0, "last_port": 8}},
        {"runner": "passthrough", "limits": {"inbox_frames": 1, "keep_frames": 2}},
        {"runner": "passthrough", "name": ""},
        {"runner": "passthrough", "weights": "int8"},
        {"runner": "passthrough", "codec_dtype": "bfloat16"},
        {"checkpoint": {"folder": "x"}, "weights": "int4"},
        {"checkpoint": {"folder": "x"}, "codec_dtype": "float16"},
    ],
)
def test_engine_args_that_contradict_each_other_are_refused(args: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        checked(EngineSettings, args, "here")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "[::]", "*", ""])
def test_engines_cannot_listen_at_every_address_because_gateways_need_one(host: str) -> None:
    with pytest.raises(ConfigError, match="every address"):
        checked(EngineSettings, {"runner": "passthrough", "link": {"host": host}}, "here")


@pytest.mark.parametrize("host", [None, "node", "127.0.0.1", "192.0.2.1", "engine.example"])
def test_engines_may_listen_at_one_address(host: str | None) -> None:
    assert checked(EngineSettings, {"runner": "passthrough", "link": {"host": host}}, "here").link.host == host


def test_the_defaults_of_limits_and_pace_are_the_engines_own() -> None:
    limits, pace = EngineSettings(runner="passthrough").limits, EngineSettings(runner="passthrough").pace
    assert Limits(**limits.model_dump()) == Limits()
    assert Pace(**pace.model_dump()) == Pace()


def test_the_demo_is_called_a_parrot_which_is_what_its_page_looks_for() -> None:
    assert read_config(next(path for path in SHIPPED if path.name == "demo.yaml")).engine.name == "parrot"


def test_production_lets_conversations_end_when_a_gateway_is_replaced() -> None:
    assert read_config(next(path for path in SHIPPED if path.name == "prod.yaml")).gateway.drain_s >= 600


@pytest.mark.parametrize("content", ["- a\n- b\n", "a: [", "applications: []\n"])
def test_what_is_no_deployment_is_refused_with_its_file(tmp_path: Path, content: str) -> None:
    path = tmp_path / "some.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=r"some\.yaml"):
        read_config(path)


def test_a_missing_file_is_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_config(tmp_path / "nowhere.yaml")


def test_a_shipped_file_is_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert read_config(Path("configs/demo.yaml")).engine.name == "parrot"


def test_a_file_that_is_here_comes_before_a_shipped_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "demo.yaml").write_text(yaml.safe_dump(passthrough()))
    assert read_config(Path("configs/demo.yaml")).engine.runner == "passthrough"


def test_a_time_limit_on_requests_is_refused_because_it_would_cut_conversations(tmp_path: Path) -> None:
    content = passthrough()
    content["http_options"]["request_timeout_s"] = 60
    with pytest.raises(ConfigError, match="request_timeout_s"):
        read_config(write(tmp_path, content))


def test_settings_are_frozen() -> None:
    settings = GatewaySettings()
    with pytest.raises(ValueError, match="frozen"):
        settings.replicas = 2  # type: ignore[misc]


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("localhost", True),
        ("LOCALHOST", True),
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("[::1]", True),
        ("0.0.0.0", False),
        ("192.0.2.1", False),
        ("::", False),
        ("example.org", False),
        ("localhost.example.org", False),
        ("", False),
    ],
)
def test_only_this_machine_counts_as_loopback(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


def test_beyond_loopback_a_key_is_required(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(config.KEY_VARIABLE, raising=False)
    config.require_key_beyond_loopback("127.0.0.1")
    with pytest.raises(ConfigError, match=config.KEY_VARIABLE):
        config.require_key_beyond_loopback("0.0.0.0")
    monkeypatch.setenv(config.KEY_VARIABLE, KEY)
    config.require_key_beyond_loopback("0.0.0.0")


def test_a_short_key_is_refused_without_being_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(config.KEY_VARIABLE, "hunter2")
    with pytest.raises(ConfigError) as caught:
        config.access_key()
    assert "hunter2" not in str(caught.value)


def test_the_proxy_is_told_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(config.HA_PROXY_VARIABLE, "1")
    assert config.proxy_mode() == "haproxy"
    monkeypatch.setenv(config.HA_PROXY_VARIABLE, "0")
    assert config.proxy_mode() == "python"
