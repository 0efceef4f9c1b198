"""The operators: shapes without a GPU, launches that can be counted, nothing done at import."""

import json
import os
import subprocess
import sys
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from serve_app.model.kernels import check, ops

CASES = [case.name for case in check.cases(torch.device("cpu"), rows=2, context=70, text_card=40)]


class Launches(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the operators of namespace ``chorus``."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.name().startswith("chorus::triton_"):
            self.names[func.name().removeprefix("chorus::triton_")] += 1
        return func(*args, **(kwargs or {}))


def on_meta(count: int = 1) -> dict[str, Tensor]:
    return {
        "x": torch.empty(count, 1, 96, device="meta", dtype=torch.bfloat16),
        "store": torch.empty(5, 4, 2, 8, device="meta"),
        "scale": torch.empty(5, 4, 2, device="meta"),
        "whole": torch.empty(count, 1, device="meta", dtype=torch.int64),
        "logits": torch.empty(count, 2048, device="meta"),
        "text": torch.empty(count, 32_000, device="meta"),
        "heat": torch.empty(count, device="meta"),
    }


def test_every_operator_gives_its_shape_on_meta_and_counts_its_launches() -> None:
    t = on_meta(3)
    row = t["whole"][:, 0]
    with Launches() as launches:
        total, normed = ops.add_norm(t["x"], t["x"], t["x"][0, 0], 1e-8)
        _, first = ops.add_norm(t["x"], None, t["x"][0, 0], 1e-8)
        gated = ops.gate(t["x"], "silu")
        query = ops.rope_append(
            t["x"], None, None, t["store"], t["store"], row, t["whole"], heads=8, kv_heads=2, interleaved=True
        )
        attended = ops.decode_attention(query[:, :, 0], t["store"], t["store"], t["whole"], row, 4)
        one_part = ops.decode_attention(query[:, :, 0], t["store"], t["store"], t["whole"], row, 4, splits=1)
        deep = ops.depth_attention(t["x"], t["store"][:3], t["store"][:3], 1, 2)
        token = ops.sample(t["logits"], t["heat"], row, row)
        text = ops.sample(t["text"], t["heat"], row, row, (3, t["heat"]))
    assert total.shape == normed.shape == first.shape == (3, 1, 96)
    assert gated.shape == (3, 1, 48)
    assert query.shape == (3, 8, 1, 8)
    assert attended.shape == one_part.shape == (3, 8, 8)
    assert deep.shape == (3, 1, 16)
    assert attended.dtype == deep.dtype == normed.dtype == torch.bfloat16
    assert token.shape == text.shape == (3,)
    assert token.dtype == text.dtype == torch.int64
    assert launches.names == Counter(
        add_norm=1,
        norm=1,
        gate=1,
        rope_append=1,
        decode_partial=2,
        decode_combine=1,  # a row in one part needs no second launch
        depth_attention=1,
        sample=1,
        sample_candidates=1,
        sample_merged=1,
    )


def test_shapes_on_meta_are_those_of_the_kernels() -> None:
    query, keys, values = torch.randn(2, 4, 8), torch.randn(3, 4, 2, 8), torch.randn(3, 4, 2, 8)
    table, length = torch.zeros(2, 1, dtype=torch.int32), torch.ones(2, dtype=torch.int64)
    for splits in (1, 2):
        ops.decode_attention(query, keys, values, table, length, 4, splits=splits)  # defines what is called below
        arguments = (query, keys, values, table, length, 4, None, None, splits)
        real = torch.ops.chorus.triton_decode_partial(*arguments)
        meta = torch.ops.chorus.triton_decode_partial(
            *(value.to("meta") if isinstance(value, Tensor) else value for value in arguments)
        )
        for one, other in zip(real, meta, strict=True):
            assert (one.shape, one.dtype) == (other.shape, other.dtype)


@pytest.mark.parametrize("name", [name for name in CASES if "text" not in name and "audio" not in name])
def test_the_check_of_a_gpu_agrees_under_the_interpreter(name: str) -> None:
    """What a GPU will run is run here first, two rows wide. bf16 has two more roundings: the interpreter cuts."""
    case = next(
        case for case in check.cases(torch.device("cpu"), rows=2, context=70, text_card=40) if case.name == name
    )
    worst, _ = check.difference(case.kernel(), case.twin(), case.tolerance)
    assert check.difference(case.kernel(), case.twin(), 2 * case.tolerance)[1], worst


def test_a_difference_is_noticed_and_so_is_a_value_that_is_not_finite() -> None:
    one = torch.ones(3)
    assert check.difference((one,), (one,), 0.0) == (0.0, True)
    assert not check.difference((one + 0.1,), (one,), 0.01)[1]
    assert not check.difference((one * float("nan"),), (one,), 0.5)[1]
    assert not check.difference((one,), (one, one), 0.5)[1]


def test_the_check_says_plainly_that_there_is_no_gpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert check.main() == 2
    said = capsys.readouterr().out.splitlines()
    assert "no CUDA" in said[0]
    assert json.loads(said[-1]) == {"cuda": False, "cases": []}


def fresh_interpreter(program: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_operators_are_there_without_triton_and_importing_them_does_nothing() -> None:
    said = fresh_interpreter(
        "import sys; sys.modules['triton'] = None\n"
        "import torch; from serve_app.model.kernels import ops\n"
        "print(ops.available(), hasattr(torch.ops.chorus, 'triton_gate'))\n"
        "print(ops.gate(torch.empty(1, 1, 4, device='meta'), 'silu').shape[-1])\n"
    )
    assert said.split() == ["False", "False", "2"]


def test_every_kernel_compiles_for_a_gpu_that_is_not_here_and_spills_no_register(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton"))
    done = subprocess.run(
        [sys.executable, "-m", "tests.model.kernels.compiled", "90"],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout.splitlines()[-1])
    assert {entry["kernel"] for entry in made} == {
        "_add_norm",
        "_gate",
        "_rope_append",
        "_partial",
        "_combine",
        "_depth_attention",
        "_sample",
        "_candidates",
        "_sample_merged",
    }
    assert [entry for entry in made if entry["spilled"]] == []
    assert [entry for entry in made if entry["shared"] > 227 * 1024] == []  # what an H100's block may have
    pipelined = [entry for entry in made if entry["kernel"] == "_partial"]
    assert all(entry["async_copies"] for entry in pipelined), "keys are not fetched ahead"
