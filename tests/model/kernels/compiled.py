"""Compiles every kernel for a GPU that need not be here, and says what each takes; run in an interpreter of its own.

Launches are caught where triton would ask a driver: their arguments give the types, and the compiler does the rest
down to machine code, with the assembler that triton ships. Prints JSON: a list of name, shared bytes, registers and
spilled bytes.
"""

import inspect
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from serve_app.model.kernels.cases import Sizes, cases
from serve_app.model.kernels.plug import plugged

SIZES = Sizes(rows=2, context=300, text_card=5000, hidden=2048)
"""What kernels are specialised for is the 7B's; what they are told at a launch may be less."""

_TYPES = {
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.int8: "i8",
    torch.float8_e4m3fn: "fp8e4nv",
    torch.int32: "i32",
    torch.int64: "i64",
    torch.bool: "i1",
    torch.uint8: "u8",
}


def _described(value: Any, at: tuple[int, ...], constants: dict[Any, Any], attributes: dict[Any, Any]) -> Any:
    """The type of an argument as the compiler names it; notes what it may take for granted."""
    if isinstance(value, tuple):
        return tuple(_described(part, (*at, index), constants, attributes) for index, part in enumerate(value))
    if isinstance(value, torch.Tensor):
        attributes[at] = [["tt.divisibility", 16]]
        return "*" + _TYPES[value.dtype]
    if isinstance(value, int):
        if value == 1:
            constants[at] = 1
            return "constexpr"
        if value % 16 == 0:
            attributes[at] = [["tt.divisibility", 16]]
        return "i32"
    return "fp32"


class Compiling:
    """Stands in for a launch: compiles for one architecture and writes down what came out."""

    def __init__(self, architecture: int) -> None:
        self.target = GPUTarget("cuda", architecture, 32)
        self.made: list[dict[str, str | int]] = []
        self.case = ""

    def run(self, kernel: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        options = {"num_warps": kwargs.pop("num_warps")}
        given = inspect.signature(kernel.fn).bind(*args, **kwargs).arguments
        signature: dict[str, Any] = {}
        constants: dict[tuple[int, ...], Any] = {}
        attributes: dict[tuple[int, ...], Any] = {}
        for place, (parameter, value) in enumerate(zip(kernel.params, given.values(), strict=True)):
            if parameter.is_constexpr:
                signature[parameter.name] = "constexpr"
                constants[(place,)] = value
            else:
                signature[parameter.name] = _described(value, (place,), constants, attributes)
        made = triton.compile(ASTSource(kernel, signature, constants, attributes), self.target, options)
        self.made.append(
            {"case": self.case, "kernel": kernel.fn.__name__, "shared": made.metadata.shared}
            | self._assembled(made.asm["ptx"])
            | {"async_copies": made.asm["ptx"].count("cp.async.")}
        )

    def _assembled(self, ptx: str) -> dict[str, int]:
        assembler = Path(triton.__file__).parent / "backends/nvidia/bin/ptxas"
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "kernel.ptx"
            source.write_text(ptx)
            target = re.search(r"\.target (\S+)", ptx)
            assert target is not None
            done = subprocess.run(
                [assembler, "-v", f"--gpu-name={target[1]}", source, "-o", Path(folder) / "kernel.cubin"],
                capture_output=True,
                text=True,
                check=True,
            )
        used = re.search(r"Used (\d+) registers", done.stderr)
        spilled = re.search(r"(\d+) bytes spill stores", done.stderr)
        assert used is not None
        return {"registers": int(used[1]), "spilled": int(spilled[1]) if spilled else 0}


def main(architecture: int) -> None:
    compiling = Compiling(architecture)

    def run(kernel: Any, *args: Any, **kwargs: Any) -> None:  # a bound method would not be given the kernel
        compiling.run(kernel, *args, **kwargs)

    JITFunction.run = run
    with plugged("cpu"):
        for case in cases(torch.device("cpu"), SIZES):
            compiling.case = case.name
            case.ours(case.cloned())
    print(json.dumps(compiling.made))


if __name__ == "__main__":
    main(int(sys.argv[1]))
