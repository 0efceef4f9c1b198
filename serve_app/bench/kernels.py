"""Kernels that one whole tick launches, counted on the meta device: no GPU, no weights, no time.

What counts: every operation that reads or writes device memory is one kernel, a copy and a concatenation included, and
so is scaled dot-product attention, whatever its decomposition. An operation of ours counts what its Triton kernel
launches (`plug.launches`: two where a row's keys are split, which few rows need). What does not count: views, shapes,
empty allocations, and scalars on the host. A library may use two kernels where this counts one (a product whose inner
dimension is split).

    python -m serve_app.bench.kernels
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from serve_app.model.duplex import Duplex
from serve_app.model.kernels.plug import launches
from serve_app.model.lm import Given, LMConfig
from serve_app.model.operation import NAMESPACE
from serve_app.model.pages import Storage
from serve_app.model.state import Rows
from serve_app.units import FRAME_SAMPLES

META: Final = torch.device("meta")
REFERENCE_KERNELS: Final = 4_845 + 150
"""moshi 0.2.13, the published 7B: in its graphs and outside of them."""
_FREE: Final = frozenset(
    ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view", "detach", "lift_fresh")
)
_ATTENTION: Final = "scaled_dot_product_attention"


@dataclasses.dataclass(frozen=True, slots=True)
class TickKernels:
    """Kernels of one tick, ``{stage: {operation: kernels}}``."""

    stages: Mapping[str, Counter[str]]

    @property
    def total(self) -> int:
        return sum(self.by_stage.values())

    @property
    def by_stage(self) -> dict[str, int]:
        return {stage: sum(kernels.values()) for stage, kernels in self.stages.items()}


class KernelCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts by the operation's name, while it is entered."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.kernels: Counter[str] = Counter()
        self._attention = _Whole(self)
        self.paused = False

    def __enter__(self) -> "KernelCounter":
        super().__enter__()  # type: ignore[no-untyped-call]
        self._attention.__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        self._attention.__exit__(*error)  # type: ignore[no-untyped-call]
        super().__exit__(*error)  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        if not self.paused and (launched := _launches(func, args, (kwargs, made))):
            self.kernels[func.overloadpacket.__name__] += launched
        return made


class _Whole(TorchFunctionMode):
    """Attention is taken apart before the other mode sees it, on a device without a kernel for it."""

    def __init__(self, counter: KernelCounter) -> None:
        super().__init__()
        self._counter = counter

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        self._counter.kernels[_ATTENTION] += 1
        self._counter.paused = True
        try:
            return func(*args, **(kwargs or {}))
        finally:
            self._counter.paused = False


def _launches(func: Any, args: Sequence[Any], others: Any) -> int:
    name = func.overloadpacket.__name__
    if func.is_view or name in _FREE:
        return 0
    if func.namespace == NAMESPACE:
        ours = launches(name, args)
        assert ours is not None, f"{name} has no kernel: what it launches is not known"
        return ours
    return int(any(isinstance(leaf, Tensor) and leaf.device.type != "cpu" for leaf in tree_leaves((args, others))))


def count(duplex: Duplex, rows: int = 4, storage: Storage | None = None) -> TickKernels:
    """Count one tick of ``rows`` rows, nobody under guidance, every top-k within the sorted candidates.

    Not the first: weights that are laid out once, on their first use, are so already.

    Args:
        duplex: of any device; only its shapes are used, and it is on the meta device afterwards.
        storage: of keys and values; None is rings.
    """
    duplex = duplex.to(META).eval()
    duplex.lm.lay_out()
    state = duplex.init_state(rows, META, torch.bfloat16, storage)
    slots = torch.zeros(rows, dtype=torch.int64, device=META)
    now = Rows(slots, torch.ones(rows, dtype=torch.bool, device=META), slots)
    pcm = torch.zeros(rows, 1, FRAME_SAMPLES, device=META)
    stages: dict[str, Counter[str]] = {}

    def stage(name: str, run: Callable[[], Any]) -> Any:
        with KernelCounter() as counter:
            made = run()
        stages[name] = counter.kernels
        return made

    with torch.inference_mode():
        duplex.tick(pcm, state, now, whole=False)
        given = stage("begin", lambda: Given.nothing(rows, duplex.lm.config.dep_q, META))
        heard = stage("encode", lambda: duplex.encode(pcm, state, now))
        thought = stage("think", lambda: duplex.think(heard, state, now, given.text, whole=False))
        spoken = stage("speak", lambda: duplex.speak(thought, state, now, given.audio, whole=False))
        said = stage("advance", lambda: duplex.lm.advance(thought.text, spoken.codes, state.lm, now))
        voice = stage("decode", lambda: duplex.decode(said, state, now))
        stage("finite", lambda: duplex.finite(pcm, heard, thought, spoken, voice, now))
    return TickKernels(stages)


def published() -> Duplex:
    """Moshi 7B in bf16 and the published Mimi in fp32, on the meta device."""
    # Here, because counting needs torch alone.
    from serve_app.checkpoint.codec import read_mimi_config
    from serve_app.checkpoint.duplex import build_on_meta
    from serve_app.checkpoint.published import MIMI, MOSHI_7B

    lm = LMConfig.from_kyutai(MOSHI_7B, "published")
    duplex = build_on_meta(read_mimi_config(MIMI, lm.mimi_codebooks, "published"), lm)
    duplex.lm.to(torch.bfloat16)
    return duplex


def main() -> None:
    """Print the count of the published 7B by stage, with what each stage is made of."""
    counted = count(published())
    for stage, kernels in counted.stages.items():
        made_of = ", ".join(f"{name} {number}" for name, number in kernels.most_common(12))
        print(f"{stage:<8s} {sum(kernels.values()):5d}  {made_of}")  # noqa: T201
    print(f"{'total':<8s} {counted.total:5d}  the reference: {REFERENCE_KERNELS}")  # noqa: T201


if __name__ == "__main__":
    main()
