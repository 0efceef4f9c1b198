"""A configuration is known to the last key, or nothing starts."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from serve_app import config
from serve_app.accounts.tenants_file import read_tenants
from serve_app.config import EngineSettings, GatewaySettings, checked, is_loopback, located_file, read_config
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


def test_the_fleets_twin_has_two_of_each_tenants_a_queue_and_an_example_that_is_found_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    read = read_config(Path("configs/fleet.yaml"))
    assert (read.engine.engines, read.gateway.replicas) == (2, 2)
    assert read.gateway.queue > 0
    assert read.gateway.tenants is not None
    tenants = read_tenants(located_file(Path(read.gateway.tenants.file)))
    assert all(tenant.may_use(str(read.engine.name)) for tenant in tenants)


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


def with_models(*engines: dict[str, Any]) -> dict[str, Any]:
    """The pass-through deployment with further engines, ``engine-2`` and so on; the first one's args come first."""
    content = passthrough()
    first = next(application for application in content["applications"] if application["name"] == "engine")
    first["args"] |= engines[0]
    for number, args in enumerate(engines[1:], 2):
        further = {**first, "name": f"engine-{number}", "args": {"runner": "passthrough", **args}}
        content["applications"].insert(0, further)
    return content


def test_each_further_engine_application_is_a_model_and_the_one_called_engine_comes_first(tmp_path: Path) -> None:
    read = read_config(write(tmp_path, with_models({"name": "a", "slots": 3}, {"name": "b", "slots": 5})))
    assert list(read.engines) == ["engine", "engine-2"]
    assert (read.engine.slots, read.engines["engine-2"].slots) == (3, 5)
    assert read.models == ("a", "b")


def test_the_engines_of_a_model_are_found_by_its_name(tmp_path: Path) -> None:
    read = read_config(write(tmp_path, with_models({"name": "a", "slots": 3}, {"name": "b", "slots": 5})))
    assert [read.engine_of(name).slots for name in (None, "a", "b")] == [3, 3, 5]
    with pytest.raises(ConfigError, match="no model c; it has a, b"):
        read.engine_of("c")


@pytest.mark.parametrize(
    ("engines", "why"),
    [
        (({"name": "a"}, {"name": "a"}), r"applications\.engine-2\.args: name: a is engine's already"),
        (({"name": "a"}, {}), r"applications\.engine-2\.args: name: missing"),
        (({}, {"name": "a"}), r"applications\.engine\.args: name: missing"),
        (({"name": "a"}, {"name": "b", "slot": 3}), r"applications\.engine-2\.args: slot: unknown key"),
    ],
)
def test_models_that_clients_could_not_tell_apart_are_refused(
    tmp_path: Path, engines: tuple[dict[str, Any], ...], why: str
) -> None:
    with pytest.raises(ConfigError, match=why):
        read_config(write(tmp_path, with_models(*engines)))


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("engine", "has engine, engine, gateway"),
        ("engines", r"applications\.0\.name"),
        ("engine-", r"applications\.0\.name"),
        ("engine-A b", r"applications\.0\.name"),
    ],
)
def test_an_application_that_is_none_of_ours_is_refused(tmp_path: Path, name: str, why: str) -> None:
    content = with_models({"name": "a"}, {"name": "b"})
    content["applications"][0]["name"] = name
    with pytest.raises(ConfigError, match=why):
        read_config(write(tmp_path, content))


def test_without_the_first_engine_or_gateways_nothing_is_served(tmp_path: Path) -> None:
    for missing in ("engine", "gateway"):
        content = with_models({"name": "a"}, {"name": "b"})
        content["applications"] = [one for one in content["applications"] if one["name"] != missing]
        with pytest.raises(ConfigError, match="needs the applications engine and gateway"):
            read_config(write(tmp_path, content))


@pytest.mark.parametrize(
    ("args", "why"),
    [
        ({"scaling": {}}, r"scaling\.max_engines: missing"),
        ({"scaling": {"max_engines": 2, "min_engines": 3}}, "min_engines is above max_engines"),
        ({"scaling": {"max_engines": 2, "min_engine": 1}}, r"scaling\.min_engine: unknown key"),
        ({"scaling": {"max_engines": 2, "tick_s": 0.1}}, r"scaling\.tick_s"),
        ({"scaling": {"max_engines": 2, "min_free": -1}}, r"scaling\.min_free"),
        ({"engines": 3, "scaling": {"max_engines": 2}}, "engines is above scaling"),
    ],
)
def test_scaling_that_makes_no_sense_is_refused_by_its_key(args: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        checked(EngineSettings, {"runner": "passthrough", **args}, "here")


def test_scaling_begins_with_the_engines_that_are_asked_for_and_at_least_the_fewest() -> None:
    def engines(**args: Any) -> tuple[int, int]:
        read = checked(EngineSettings, {"runner": "passthrough", **args}, "here")
        return read.first_engines, read.most_engines

    assert engines(engines=2) == (2, 2)
    assert engines(scaling={"min_engines": 2, "max_engines": 9}) == (2, 9)
    assert engines(engines=3, scaling={"min_engines": 2, "max_engines": 9}) == (3, 9)


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


def test_logs_are_text_or_json_whatever_else_the_file_says(tmp_path: Path) -> None:
    assert read_config(write(tmp_path, passthrough())).serve.logs is None
    assert read_config(write(tmp_path, {**passthrough(), "logs": "json"})).serve.logs == "json"
    with pytest.raises(ConfigError, match="logs"):
        read_config(write(tmp_path, {**passthrough(), "logs": "xml"}))


def test_ray_takes_a_file_that_says_how_to_log() -> None:
    taken = ServeDeploySchema.model_validate({**passthrough(), "logs": "json"})
    assert [application.name for application in taken.applications] == ["engine", "gateway"]


def test_without_an_operators_key_there_is_none_and_a_short_one_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(config.OPERATOR_KEY_VARIABLE, raising=False)
    assert config.operator_key() is None
    monkeypatch.setenv(config.OPERATOR_KEY_VARIABLE, KEY)
    assert config.operator_key() == KEY
    monkeypatch.setenv(config.OPERATOR_KEY_VARIABLE, KEY[:15])
    with pytest.raises(ConfigError, match=config.OPERATOR_KEY_VARIABLE) as caught:
        config.operator_key()
    assert KEY[:15] not in str(caught.value)


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
