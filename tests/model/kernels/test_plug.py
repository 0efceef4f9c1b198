"""Kernels and operations: one set, each kernel equal to the PyTorch path, launches that are counted as they are."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from serve_app.model.kernels import check, plug
from serve_app.model.kernels.cases import SMALL, Case, cases, difference
from serve_app.model.kernels.plug import plugged
from serve_app.model.operation import BODIES, KERNELS, OPERATIONS, tensors_of

CASES = {case.name: case for case in cases(torch.device("cpu"), SMALL)}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_an_operation_with_its_kernel_gives_what_its_pytorch_path_gives(case: Case) -> None:
    with plugged("cpu"):
        ours = case.ours(case.cloned())
    worst, agrees = difference(ours, case.theirs(case.cloned()), case.tolerance)
    assert agrees, worst


def test_every_operation_but_those_that_say_so_has_a_kernel_and_every_kernel_a_case() -> None:
    assert set(plug.MODULES) | set(plug.WITHOUT) == set(OPERATIONS) == set(BODIES)
    assert not set(plug.MODULES) & set(plug.WITHOUT)
    assert {case.operation for case in CASES.values()} == set(plug.MODULES)


GIVES = {name: case for name, case in CASES.items() if case.operation not in ("fill_rows", "remember")}


@pytest.mark.parametrize("case", GIVES.values(), ids=GIVES)
def test_an_operation_tells_its_shape_on_meta(case: Case) -> None:
    told = OPERATIONS[case.operation](*_on_meta(case.arguments))
    made = OPERATIONS[case.operation](*case.cloned())
    pairs = zip(tensors_of((told,)), tensors_of((made,)), strict=True)
    for one, other in pairs:
        assert (one.shape, one.dtype, one.stride()) == (other.shape, other.dtype, other.stride())


def _on_meta(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.to("meta")
    return type(value)(_on_meta(part) for part in value) if isinstance(value, list | tuple) else value


def test_without_kernels_the_pytorch_path_runs_and_afterwards_again(monkeypatch: pytest.MonkeyPatch) -> None:
    case, called = CASES["gate"], list[str]()

    def noted(name: str) -> Any:
        called.append(name)
        return BODIES[name]

    monkeypatch.setattr(plug, "kernel", noted)
    case.ours(case.cloned())
    assert called == []
    with plugged("cpu"):
        case.ours(case.cloned())
    assert called == ["gate"]
    case.ours(case.cloned())
    assert called == ["gate"]


def test_without_triton_nothing_is_plugged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plug, "available", lambda: False)
    assert not plug.plug("cpu")
    assert KERNELS == {}


def test_attention_that_is_split_and_text_take_two_launches_and_a_level_of_a_codebook_too() -> None:
    def query(rows: int) -> Tensor:
        return torch.empty(rows, 32, 128, device="meta")

    keys = torch.empty(9, 3000, 32, 128, device="meta")
    for rows, expected in ((1, 2), (16, 2), (32, 1), (64, 1)):
        table = torch.empty(rows, 1, device="meta")
        assert plug.launches("decode_attention", (query(rows), keys, keys, table, None, 3000, None, None)) == expected
    assert [plug.launches("sample", (torch.empty(1, size, device="meta"),)) for size in (2048, 32_000)] == [1, 2]
    assert plug.launches("residual_search", (None, [keys] * 7, [keys] * 7)) == 14
    assert plug.launches("gate", ()) == 1
    assert plug.launches("of nobody", ()) is None


def test_a_difference_is_noticed_and_so_is_a_value_that_is_not_finite() -> None:
    one = torch.ones(3)
    assert difference((one,), (one,), 0.0) == (0.0, True)
    assert not difference((one + 0.1,), (one,), 0.01)[1]
    assert not difference((one * float("nan"),), (one,), 0.5)[1]
    assert not difference((one,), (one, one), 0.5)[1]


def test_the_check_compares_every_kernel_in_the_interpreter(capsys: pytest.CaptureFixture[str]) -> None:
    assert check.main(["--interpret"]) == check.AGREES
    *lines, last = capsys.readouterr().out.splitlines()
    told = json.loads(last)
    assert told["agrees"]
    assert [case["name"] for case in told["cases"]] == list(CASES)
    assert len(lines) == len(CASES)


def test_the_check_reports_a_kernel_that_fails_and_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(name: str) -> object:
        raise RuntimeError(f"{name} does not compile")

    monkeypatch.setattr(plug, "kernel", broken)
    assert check.main(["--interpret"]) == check.DIFFERS
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert all("does not compile" in case["error"] for case in told["cases"])


@pytest.mark.parametrize(("missing", "said"), [("cuda", "no CUDA"), ("triton", "triton is not installed")])
def test_the_check_says_plainly_what_is_missing(
    missing: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(plug, "available", lambda: missing != "triton")
    assert check.main([]) == check.NOTHING
    lines = capsys.readouterr().out.splitlines()
    assert said in lines[0]
    assert json.loads(lines[-1])["cases"] == []


def fresh_interpreter(program: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_operations_are_there_without_triton_and_nothing_needs_it() -> None:
    said = fresh_interpreter(
        "import sys; sys.modules['triton'] = None; sys.modules['triton.language'] = None\n"
        "import torch\n"
        "from serve_app.engine.captured import capture_on\n"
        "from serve_app.model.kernels import check, plug\n"
        "from serve_app.model.operation import KERNELS\n"
        "print(plug.available(), plug.plug(), len(KERNELS), capture_on('cpu'))\n"
        "print(torch.ops.chorus.gate(torch.empty(1, 1, 4, device='meta'), 'silu').shape[-1])\n"
    )
    assert said.split() == ["False", "False", "0", "None", "2"]


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
    assert {entry["case"] for entry in made} == set(CASES) - {"rope_append float32", "decode float32"} | {
        "rope_append bfloat16",
        "decode bfloat16",
    }
    assert [entry for entry in made if entry["spilled"]] == []
    assert [entry for entry in made if entry["shared"] > 227 * 1024] == []  # what an H100's block may have
    pipelined = [entry for entry in made if entry["kernel"] == "_partial"]
    assert all(entry["async_copies"] for entry in pipelined), "keys are not fetched ahead"
