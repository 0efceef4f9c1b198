"""Ray's endpoint shows what the table of metrics promises, after one conversation."""

import asyncio
import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from serve_app.observability.metrics import METRICS, Metric, MetricKind
from tests.serving.cluster import ROOT, Cluster, eventually, up
from tests.serving.conversation import TEST_S, tone, visit

EXPORT_S = 40.0
SESSION = re.compile(r"(/\S*/session_\d[^/\s]*)/")


@pytest.fixture(scope="module")
def visited() -> Iterator[Cluster]:
    """Somebody has spoken and gone, and somebody has asked for what is not there."""

    async def talk(cluster: Cluster) -> None:
        async with asyncio.timeout(TEST_S), visit(cluster.chat) as visitor:
            await visitor.say_in_real_time(tone(300, 12))

    with up(ROOT / "configs" / "passthrough.yaml") as cluster:
        asyncio.run(talk(cluster))
        yield cluster


def exported(cluster: Cluster) -> str:
    """Everything on the endpoint of the cluster's node."""
    cluster.family.look()
    titles = (Path(f"/proc/{process}/cmdline") for process in cluster.family.left())
    words = " ".join(title.read_bytes().replace(b"\0", b" ").decode() for title in titles if title.exists())
    session = SESSION.search(words)
    assert session is not None
    (port,) = Path(session[1]).glob("metrics_export_port_*")
    with urllib.request.urlopen(f"http://127.0.0.1:{port.read_text().strip()}/metrics", timeout=10) as response:
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


def test_every_stage_of_a_tick_has_its_time(visited: Cluster) -> None:
    stages = set(re.findall(r'ray_chorus_tick_seconds_count\{.*stage="(\w+)"', exported(visited)))
    assert {"tick", "wait"} <= stages
