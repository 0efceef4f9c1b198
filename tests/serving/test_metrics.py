"""Ray's endpoint shows what the table promises, and a real Prometheus answers every expression that ships."""

import asyncio
import http.server
import json
import re
import secrets
import shutil
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from serve_app.accounts.keys_file import KeysFile
from serve_app.config import LOGS_VARIABLE, OPERATOR_KEY_VARIABLE
from serve_app.observability.metrics import METRICS, Metric, MetricKind
from serve_app.serving.discovery import FILE
from serve_app.serving.environment import free_port
from tests.observability.board import DEPLOY, RULES, alerts, board_expressions, recorded_expressions
from tests.serving.cluster import ADDRESS, Cluster, changed, eventually, running, up
from tests.serving.conversation import TEST_S, tone, visit

EXPORT_S = 40.0
PROMETHEUS = shutil.which("prometheus") or ""
SESSION = re.compile(r"(/\S*/session_\d[^/\s]*)/")


TENANT = "acme"
OPERATOR_KEY = secrets.token_hex(16)
NOBODY_WAITS = 10


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A folder with a tenant's files, and the header that opens its conversations."""
    folder = tmp_path_factory.mktemp("tenants")
    (folder / "tenants.yaml").write_text(
        f"tenants: {{{TENANT}: {{concurrent_sessions: 20, sessions_per_minute: 10000}}}}"
    )
    made = KeysFile(folder / "keys.json", time.time, secrets.token_bytes).create(TENANT, None)
    return folder, {"additional_headers": {"Authorization": f"Bearer {made.text}"}}


class Collector(http.server.ThreadingHTTPServer):
    """Takes traces as OpenTelemetry's collector does, and keeps what the spans say."""

    def __init__(self) -> None:
        self.spans: dict[str, dict[str, str]] = {}
        super().__init__(("127.0.0.1", 0), Intake)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1/traces"


class Intake(http.server.BaseHTTPRequestHandler):
    """One request of an exporter."""

    server: Collector

    def do_POST(self) -> None:
        told = ExportTraceServiceRequest()
        told.ParseFromString(self.rfile.read(int(self.headers["content-length"])))
        for span in (
            span for resource in told.resource_spans for scope in resource.scope_spans for span in scope.spans
        ):
            self.server.spans[span.name] = {entry.key: entry.value.string_value for entry in span.attributes}
        self.send_response(200)
        self.end_headers()

    def log_request(self, *args: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with Collector() as made:
        thread = threading.Thread(target=made.serve_forever)
        thread.start()
        yield made
        made.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def visited(key: tuple[Path, dict[str, Any]], collector: Collector) -> Iterator[Cluster]:
    """Where tenants knock and may queue, somebody has spoken and gone."""
    folder, header = key

    async def talk(cluster: Cluster) -> None:
        async with asyncio.timeout(TEST_S), visit(cluster.chat, **header) as visitor:
            await visitor.say_in_real_time(tone(300, 12))

    tenants = {
        "file": str(folder / "tenants.yaml"),
        "keys": str(folder / "keys.json"),
        "ledger": f"sqlite:///{folder / 'ledger.sqlite'}",
    }
    config = changed(
        "passthrough.yaml", folder, gateway={"tenants": tenants, "queue": NOBODY_WAITS, "traces": collector.endpoint}
    )
    with up(config, {OPERATOR_KEY_VARIABLE: OPERATOR_KEY, LOGS_VARIABLE: "json"}) as cluster:
        asyncio.run(talk(cluster))
        yield cluster


def endpoint(cluster: Cluster) -> str:
    """Where the cluster's node shows its metrics."""
    cluster.family.look()
    titles = (Path(f"/proc/{process}/cmdline") for process in cluster.family.left())
    words = " ".join(title.read_bytes().replace(b"\0", b" ").decode() for title in titles if title.exists())
    session = SESSION.search(words)
    assert session is not None
    ((target,),) = [node["targets"] for node in json.loads((Path(session[1]) / FILE).read_text())]
    return str(target)


def exported(cluster: Cluster) -> str:
    """Everything on the endpoint."""
    with urllib.request.urlopen(f"http://{endpoint(cluster)}/metrics", timeout=10) as response:
        text: str = response.read().decode()
    return text


@pytest.mark.parametrize(
    "metric", [metric for metric in METRICS if metric.kind is not MetricKind.COUNTER], ids=lambda metric: metric.name
)
def test_every_state_and_time_is_exported(visited: Cluster, metric: Metric) -> None:
    name = metric.exported + ("_bucket" if metric.kind is MetricKind.HISTOGRAM else "")
    eventually(lambda: f"\n{name}{{" in exported(visited), EXPORT_S)


def test_what_has_happened_is_counted_by_its_cause(visited: Cluster) -> None:
    def count() -> list[str]:
        return re.findall(r'\nray_chorus_conversations_ended_total\{.*cause="client".*\} ([\d.]+)', exported(visited))

    eventually(lambda: count() == ["1.0"], EXPORT_S)


def test_seconds_of_conversation_are_counted_by_tenant(visited: Cluster) -> None:
    def spoken() -> list[str]:
        return re.findall(
            rf'\nray_chorus_tenant_audio_seconds_total\{{.*tenant="{TENANT}".*\}} ([\d.]+)', exported(visited)
        )

    eventually(lambda: [seconds for seconds in spoken() if float(seconds) > 0], EXPORT_S)


def test_every_stage_of_a_tick_has_its_time(visited: Cluster) -> None:
    stages = set(re.findall(r'ray_chorus_tick_seconds_count\{.*stage="(\w+)"', exported(visited)))
    assert {"tick", "wait"} <= stages


def debug_ticks(cluster: Cluster, key: str) -> tuple[int, Any]:
    """Status and body of the operator's page."""
    question = urllib.request.Request(f"{cluster.http}/debug/ticks", headers={"Authorization": f"Bearer {key}"})
    try:
        with urllib.request.urlopen(question, timeout=10) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_the_operator_alone_sees_ticks_one_by_one(visited: Cluster) -> None:
    status, body = debug_ticks(visited, OPERATOR_KEY)
    assert status == 200
    ((engine,),) = body.values()
    assert engine["ticks"]
    assert {"rows", "started_s", "overrun", "stage_ms"} == engine["ticks"][0].keys()
    assert {"tick", "wait"} <= engine["ticks"][0]["stage_ms"].keys()
    status, body = debug_ticks(visited, "wrong")
    assert (status, body["reason"]) == (401, "not_allowed")
    assert OPERATOR_KEY not in visited.output


def test_every_line_but_the_address_is_json_where_that_is_asked_for(visited: Cluster) -> None:
    def told() -> list[Any]:
        return [json.loads(line) for line in visited.lines if not ADDRESS.match(line)]

    def ends(event: str) -> list[Any]:
        return [line for line in told() if line["event"] == event]

    (gateway,) = eventually(lambda: ends("conversation end"), EXPORT_S)
    (engine,) = eventually(lambda: ends("session end"), EXPORT_S)
    assert gateway["cause"] == "client"
    assert engine["cause"] == "closed"
    assert all({"ts", "level", "logger"} <= line.keys() for line in told())


def test_the_start_of_a_session_is_traced(visited: Cluster, collector: Collector) -> None:
    eventually(lambda: "session start" in collector.spans, EXPORT_S)
    assert set(collector.spans) == {"question", "admission", "lease", "attach", "first audio", "session start"}
    whole = collector.spans["session start"]
    assert whole.keys() == {"tenant", "engine"}
    assert whole["tenant"] == TENANT


@pytest.fixture(scope="module")
def prometheus(visited: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a Prometheus that scrapes the cluster with the configuration that ships, only faster."""
    folder = tmp_path_factory.mktemp("prometheus")
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(RULES)]
    (job,) = config["scrape_configs"]
    del job["file_sd_configs"]
    job["static_configs"] = [{"targets": [endpoint(visited)]}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    port = free_port("127.0.0.1", 0)
    command = [PROMETHEUS, f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}"]
    with running([*command, f"--web.listen-address=127.0.0.1:{port}"]):
        address = f"http://127.0.0.1:{port}"
        eventually(lambda: answers(address, "ray_chorus_slots"), EXPORT_S)
        yield address


def answers(address: str, expression: str) -> list[object]:
    """The series that an expression gives."""
    query = urllib.parse.urlencode({"query": expression})
    try:
        with urllib.request.urlopen(f"{address}/api/v1/query?{query}", timeout=10) as response:
            found: list[object] = json.load(response)["data"]["result"]
    except urllib.error.URLError:  # it starts
        return []
    return found


needs_prometheus = pytest.mark.skipif(not PROMETHEUS, reason="NOT TESTED: dashboard and alerts; there is no Prometheus")


@needs_prometheus
def test_every_expression_of_dashboard_and_rules_gives_a_series(
    visited: Cluster, prometheus: str, key: tuple[Path, dict[str, Any]]
) -> None:
    async def talk() -> None:
        async with asyncio.timeout(4 * TEST_S):
            while silent:
                async with visit(visited.chat, **key[1]) as visitor:
                    await visitor.say_in_real_time(tone(300, 12))
                silent.difference_update({name for name in silent if answers(prometheus, expressions[name])})

    expressions = {**board_expressions(), **recorded_expressions()}
    silent = set(expressions)
    try:
        asyncio.run(talk())
    except TimeoutError:
        assert not silent, {name: expressions[name] for name in silent}


@needs_prometheus
def test_no_alert_fires_on_a_healthy_server(prometheus: str) -> None:
    for name, expression in alerts().items():
        if name != "ChorusIsFull":  # four slots, and a visitor or two
            assert answers(prometheus, expression) == [], name
