"""What is held beside weights and state, against what a model on a CPU really lays out, and what lives in a tick."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from serve_app.bench.models import build
from serve_app.bench.shapes import PRESETS
from serve_app.checkpoint.beside import GRAPH_BYTES, GRAPHS, _Living, graph_bytes, laid_out_bytes
from serve_app.checkpoint.duplex import build_on_meta
from serve_app.checkpoint.plan import main
from serve_app.model.duplex import Duplex
from serve_app.model.product import Derived, Filters, Product
from serve_app.model.state import all_rows
from serve_app.units import FRAME_SAMPLES

CPU, META = torch.device("cpu"), torch.device("meta")


def shape() -> Duplex:
    tiny = PRESETS["tiny"]
    return build_on_meta(tiny.mimi_config(), tiny.lm_config()).eval()


def derived(module: nn.Module) -> Iterator[Derived]:
    for inner in module.modules():
        for value in vars(inner).values():
            if isinstance(value, Product):
                yield value._derived
            elif isinstance(value, Filters):
                yield value._direct
                yield value._over_windows._derived


@pytest.mark.parametrize("rows", [1, 64])
def test_what_a_cpu_lays_out_is_what_was_said_before_it_was_loaded(rows: int) -> None:
    duplex = build(PRESETS["tiny"], CPU, torch.float32)
    state = duplex.init_state(rows, CPU, torch.float32)
    with torch.inference_mode():
        for _ in range(2):
            duplex.tick(torch.zeros(rows, 1, FRAME_SAMPLES), state, all_rows(rows), whole=False)
    held = 4 * sum(each.entries for each in derived(duplex))
    assert laid_out_bytes(shape(), rows, torch.float32) == pytest.approx(held, rel=0.1)


def test_graphs_of_more_rows_take_more_and_twins_take_more_still() -> None:
    alone, many, guided = (
        graph_bytes(shape(), rows, guided=guided, dtype=torch.bfloat16)
        for rows, guided in ((1, False), (16, False), (16, True))
    )
    assert GRAPHS * GRAPH_BYTES < alone < many < guided


def test_what_lives_at_once_is_counted_and_what_is_gone_is_not() -> None:
    with _Living() as living:
        for _ in range(5):
            x = torch.empty(1024, device=META)
            y = x.view(2, -1) + 1
            del x
        del y
    assert living.peak_bytes == 3 * 4096  # the last sum, while the next two are made
    assert living._now_bytes == 0


@pytest.mark.parametrize(("device", "line"), [("cpu", "laid out"), ("cuda", "captured graphs")])
def test_the_command_counts_what_is_beside(
    device: str, line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "weights").mkdir()
    deployment = tmp_path / "deployment.yaml"
    deployment.write_text(
        "applications:\n  - name: engine\n    import_path: serve_app.serving.engine_app:build\n    args:\n"
        f"      checkpoint: {{folder: {tmp_path / 'weights'}}}\n      device: {device}\n      slots: 2\n"
        "  - name: gateway\n    import_path: serve_app.serving.gateway_app:build\n"
    )
    assert main([str(deployment), "--memory-gib", "80"]) == 0
    (told,) = [each for each in capsys.readouterr().out.splitlines() if each.startswith(line)]
    assert float(told.split()[2]) > 1
