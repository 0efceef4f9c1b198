"""The file by which Prometheus finds a Ray without a dashboard."""

import json
from pathlib import Path

from serve_app.serving.discovery import FILE, Discovery


def made(folder: Path, name: str, port: int) -> Discovery:
    (folder / name).mkdir()
    discovery = Discovery(folder / name, port)
    discovery.write()
    return discovery


def targets(folder: Path) -> list[str]:
    (node,) = json.loads((folder / FILE).read_text())
    return list(node["targets"])


def test_prometheus_is_led_to_the_newest_session(tmp_path: Path) -> None:
    made(tmp_path, "one", 1_111)
    assert targets(tmp_path) == ["127.0.0.1:1111"]
    made(tmp_path, "another", 2_222)
    assert targets(tmp_path) == ["127.0.0.1:2222"]
    assert targets(tmp_path / "one") == ["127.0.0.1:1111"]


def test_who_stops_takes_its_own_link_away_and_nobody_elses(tmp_path: Path) -> None:
    old, new = made(tmp_path, "old", 1_111), made(tmp_path, "new", 2_222)
    old.remove()
    assert targets(tmp_path) == ["127.0.0.1:2222"]
    new.remove()
    new.remove()
    assert not (tmp_path / FILE).is_symlink()
