"""What ships to deploy with says what the schemas of Kubernetes, systemd and this project allow."""

import configparser
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import pytest
import yaml

from serve_app.config import read_config
from tests.observability.board import DEPLOY

MANIFESTS = sorted((DEPLOY / "kuberay").glob("*.yaml"))
QUANTITY = r"^[0-9]+(\.[0-9]+)?(m|Ki|Mi|Gi)?$"


class Part(pydantic.BaseModel):
    """Of a manifest: Kubernetes drops unknown keys without a word, so here they are errors."""

    model_config = pydantic.ConfigDict(extra="forbid")


Quantity = Annotated[str, pydantic.StringConstraints(pattern=QUANTITY)]


class Port(Part):
    containerPort: int = pydantic.Field(ge=1, le=65535)
    name: Annotated[str, pydantic.StringConstraints(pattern=r"^[a-z][a-z0-9-]{0,14}$")]


class Secret(Part):
    name: str
    key: str
    optional: bool = False


class Variable(Part):
    name: str
    value: str | None = None
    valueFrom: dict[Literal["secretKeyRef"], Secret] | None = None

    @pydantic.model_validator(mode="after")
    def _has_one_source(self) -> "Variable":
        assert (self.value is None) != (self.valueFrom is None)
        return self


class Resources(Part):
    requests: dict[str, Quantity]
    limits: dict[str, Quantity]


class Container(Part):
    name: str
    image: str
    ports: list[Port]
    env: list[Variable]
    resources: Resources


class PodSpec(Part):
    containers: Annotated[list[Container], pydantic.Field(min_length=1)]
    tolerations: list[dict[str, str]] = []
    terminationGracePeriodSeconds: int | None = None


class Template(Part):
    spec: PodSpec


class Head(Part):
    rayStartParams: dict[str, str]
    template: Template


class Workers(Part):
    groupName: str
    replicas: int
    minReplicas: int
    maxReplicas: int
    rayStartParams: dict[str, str]
    template: Template


class AuthOptions(Part):
    mode: Literal["token", "disabled"]


class ClusterSpec(Part):
    rayVersion: str
    authOptions: AuthOptions
    headGroupSpec: Head
    workerGroupSpecs: list[Workers]


class ServiceSpec(Part):
    serveConfigV2: str
    rayClusterConfig: ClusterSpec
    rayClusterDeletionDelaySeconds: int


class Named(Part):
    name: str


class RayService(Part):
    """As KubeRay's custom resource of v1."""

    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayService"]
    metadata: Named
    spec: ServiceSpec


@pytest.fixture(params=MANIFESTS, ids=lambda path: path.stem)
def service(request: pytest.FixtureRequest) -> RayService:
    path: Path = request.param
    return RayService.model_validate(yaml.safe_load(path.read_text()))


def test_there_is_a_manifest_for_one_gpu_and_one_for_many() -> None:
    assert [path.stem for path in MANIFESTS] == ["many-gpus", "one-gpu"]


def test_the_applications_of_a_manifest_are_a_deployment_that_we_can_read(service: RayService, tmp_path: Path) -> None:
    path = tmp_path / "serve.yaml"
    path.write_text(service.spec.serveConfigV2)
    config = read_config(path)
    assert config.engine.device == "cuda"
    assert config.engine.link.host == "node"


def test_every_engine_of_a_manifest_has_a_gpu(service: RayService, tmp_path: Path) -> None:
    path = tmp_path / "serve.yaml"
    path.write_text(service.spec.serveConfigV2)
    engine = read_config(path).engine
    (workers,) = service.spec.rayClusterConfig.workerGroupSpecs
    (container,) = workers.template.spec.containers
    assert int(container.resources.limits["nvidia.com/gpu"]) * workers.replicas >= engine.engines * engine.num_gpus


def test_pods_may_say_goodbye_for_as_long_as_gateways_drain(service: RayService, tmp_path: Path) -> None:
    path = tmp_path / "serve.yaml"
    path.write_text(service.spec.serveConfigV2)
    (workers,) = service.spec.rayClusterConfig.workerGroupSpecs
    assert (workers.template.spec.terminationGracePeriodSeconds or 0) > read_config(path).gateway.drain_s


def test_every_pod_has_the_key_from_a_secret_and_none_in_the_file(service: RayService) -> None:
    cluster = service.spec.rayClusterConfig
    for template in (cluster.headGroupSpec.template, cluster.workerGroupSpecs[0].template):
        (key,) = [variable for variable in template.spec.containers[0].env if variable.name == "CHORUS_KEY"]
        assert key.valueFrom is not None


def test_kuberay_reaches_the_dashboard_and_nobody_does_without_a_token(service: RayService) -> None:
    cluster = service.spec.rayClusterConfig
    assert cluster.authOptions.mode == "token"
    assert "dashboard-host" not in cluster.headGroupSpec.rayStartParams  # else KubeRay may not reach it


def test_kuberay_finds_in_the_image_what_its_probes_call() -> None:
    assert re.search(r"apt-get install .*\bwget\b", (DEPLOY / "Dockerfile").read_text())


def test_the_image_sets_what_the_launcher_would_set() -> None:
    from serve_app.serving.environment import environment

    told = (DEPLOY / "Dockerfile").read_text()
    wanted = environment(haproxy=True, drain_s=0, ports=(0, 0, 0))
    for name in (
        "RAY_SERVE_ENABLE_HA_PROXY",
        "RAY_SERVE_HAPROXY_LOG_TARGET",
        "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S",
        "RAY_worker_niceness",
    ):
        assert f"{name}={wanted[name]}" in told
    assert "RAY_AUTH_MODE=token" in told


def test_the_unit_ends_the_server_as_its_operator_would() -> None:
    unit = configparser.ConfigParser(strict=False)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(DEPLOY / "systemd" / "chorus.service")
    service: Any = unit["Service"]
    assert service["KillSignal"] == "SIGINT"
    assert int(service["TimeoutStopSec"]) > 10
    assert "serve_app up" in service["ExecStart"]


def test_the_tls_proxy_streams_and_keeps_no_log() -> None:
    told = (DEPLOY / "caddy" / "Caddyfile").read_text()
    assert "flush_interval -1" in told
    assert "output discard" in told
    assert "8998" in told


@pytest.mark.parametrize("header", ["x-request-timeout-seconds", "x-request-disconnect-disabled"])
def test_the_tls_proxy_passes_no_header_on_that_commands_ray(header: str) -> None:
    told = (DEPLOY / "caddy" / "Caddyfile").read_text()
    assert f"header_up -{header}\n" in told
