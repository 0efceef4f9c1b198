"""What the metrics cost is judged by both of its figures."""

import pytest

from load_tests.metrics_cost import TARGET, Rig, within_target


@pytest.mark.parametrize(
    ("share", "reckoned", "fits"),
    [(0.0, 0.0, True), (TARGET, TARGET, True), (2 * TARGET, 0.0, False), (0.0, 2 * TARGET, False)],
)
def test_each_figure_alone_can_be_too_much(share: float, reckoned: float, fits: bool) -> None:
    assert within_target({"core_share": share, "core_share_reckoned": reckoned}) is fits


def test_latency_is_a_chore_of_its_own_only_when_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for instruments in ("EngineInstruments", "GatewayInstruments", "AdmissionInstruments"):
        monkeypatch.setattr(f"load_tests.metrics_cost.{instruments}", lambda *model: None)
    rig = Rig(4)
    asked, unasked = ({chore.name for chore in rig.chores(12.5, latency)} for latency in (True, False))
    assert asked - unasked == {"latency of each session"}
