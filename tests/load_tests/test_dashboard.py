"""The dashboard's picture has every panel of its file, from made-up answers."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from load_tests import dashboard
from load_tests.dashboard import BOARD, draw, legend, lines, main

PANEL = {"targets": [{"expr": "a", "legendFormat": "{{cause}}"}, {"expr": "b", "legendFormat": "all"}]}
POINTS = [(0.0, 1.0), (60.0, float("nan"))]


@pytest.mark.parametrize(
    ("template", "shown"),
    [("all", "all"), ("{{cause}}", "lag"), ("of {{ cause }}: {{nothing}}", "of lag: "), ("{{}}", "{{}}")],
)
def test_a_legend_names_what_the_labels_say(template: str, shown: str) -> None:
    assert legend(template, {"cause": "lag"}) == shown


def test_a_panel_shows_every_series_of_every_expression() -> None:
    answers: dict[str, Any] = {"a": [({"cause": "lag"}, POINTS), ({"cause": "fault"}, POINTS)], "b": [({}, POINTS)]}
    assert [line.legend for line in lines(PANEL, lambda expression: answers[expression])] == ["lag", "fault", "all"]


def test_the_zero_that_stands_in_for_nothing_is_shown_alone_only() -> None:
    zero: tuple[Mapping[str, str], Any] = ({}, POINTS)
    causes = {"targets": PANEL["targets"][:1]}
    assert [line.legend for line in lines(causes, lambda _: [zero])] == [""]
    assert [line.legend for line in lines(causes, lambda _: [({"cause": "lag"}, POINTS), zero])] == ["lag"]


@pytest.mark.parametrize(
    "answer", [[], [({"cause": "lag", "step": "parked", "le": "1"}, POINTS)]], ids=["silent", "told"]
)
def test_the_picture_has_every_panel_of_the_board_with_its_title(answer: Sequence[Any]) -> None:
    board = json.loads(BOARD.read_text())
    figure = draw(board, lambda _: answer, 0.0, 60.0)
    assert [axes.get_title(loc="left") for axes in figure.axes] == [panel["title"] for panel in board["panels"]]
    assert all(
        len(axes.lines) == len(panel["targets"]) * len(answer)
        for axes, panel in zip(figure.axes, board["panels"], strict=True)
    )


def test_no_two_panels_lie_on_each_other() -> None:
    figure = draw(json.loads(BOARD.read_text()), lambda _: [], 0.0, 60.0)
    places = [axes.get_position() for axes in figure.axes]
    for index, one in enumerate(places):
        assert not any(one.overlaps(other) for other in places[index + 1 :])


def test_a_prometheus_that_is_not_there_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "none.png"
    assert main(["--prometheus", "http://127.0.0.1:9", "--out", str(out)]) == 1
    assert "http://127.0.0.1:9" in capsys.readouterr().err
    assert not out.exists()


def test_the_picture_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dashboard, "prometheus", lambda *_: lambda _: [({}, POINTS)])
    out = tmp_path / "board.png"
    assert main(["--out", str(out)]) == 0
    assert out.read_bytes().startswith(b"\x89PNG")
