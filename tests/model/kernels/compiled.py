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

from serve_app.model.kernels.check import cases

_TYPES = {
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.int8: "i8",
    torch.float8_e4m3fn: "fp8e4nv",
    torch.int32: "i32",
    torch.int64: "i64",
}


class Compiling:
    """Stands in for a launch: compiles for one architecture and writes down what came out."""

    def __init__(self, architecture: int) -> None:
        self.target = GPUTarget("cuda", architecture, 32)
        self.made: list[dict[str, str | int]] = []
        self.case = ""

    def run(self, kernel: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        options = {"num_warps": kwargs.pop("num_warps")}
        given = inspect.signature(kernel.fn).bind(*args, **kwargs).arguments
        signature: dict[str, str] = {}
        constants: dict[tuple[int], Any] = {}
        attributes: dict[tuple[int], Any] = {}
        for place, (parameter, value) in enumerate(zip(kernel.params, given.values(), strict=True)):
            kind, aligned = "constexpr", False
            if parameter.is_constexpr or (isinstance(value, int) and value == 1):
                constants[(place,)] = value
            elif isinstance(value, torch.Tensor):
                kind, aligned = "*" + _TYPES[value.dtype], True
            elif isinstance(value, int):
                kind, aligned = "i32", value % 16 == 0
            else:
                kind = "fp32"
            signature[parameter.name] = kind
            if aligned:
                attributes[(place,)] = [["tt.divisibility", 16]]
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
    for case in cases(torch.device("cpu"), rows=2, context=300, text_card=5000):
        compiling.case = case.name
        case.kernel()
    print(json.dumps(compiling.made))


if __name__ == "__main__":
    main(int(sys.argv[1]))
