"""Stand-ins for a GPU's graphs: a tape that replays recorded operators, and one that only counts."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

HOST_WAITS: Final = frozenset(
    {"_local_scalar_dense", "item", "nonzero", "masked_select", "unique_consecutive", "_unique2", "is_nonzero", "equal"}
)
"""Operators whose result the host needs, so that it waits for the device."""


def name_of(operator: Any) -> str:
    return str(operator.overloadpacket.__name__)


def refuse_what_waits(operator: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Raise for what a capture would refuse: waiting for the device, or copying from and to it."""
    name = name_of(operator)
    if name in HOST_WAITS:
        raise AssertionError(f"{name} waits for the device")
    flat = tree_flatten((tuple(args), dict(kwargs)))[0]
    if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
        indices = [index for index in args[1] if isinstance(index, Tensor)]
        assert all(index.dtype not in (torch.bool, torch.uint8) for index in indices), "a mask has to be counted"
    if name == "repeat_interleave" and isinstance(args[-1], Tensor):
        raise AssertionError("repeats have to be counted")
    devices = {value.device.type for value in flat if isinstance(value, Tensor)}
    target = kwargs.get("device")
    if name in ("_to_copy", "to", "copy_") and target is not None:
        devices.add(torch.device(target).type)
    assert len(devices) < 2, f"{name} goes between {sorted(devices)}"


class Vigil(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Lets everything through that a capture would."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operators = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        refuse_what_waits(func, args, kwargs or {})
        self.operators += 1
        return func(*args, **(kwargs or {}))


class Tape(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records operators with the very tensors they ran on; replays them on those tensors and on nothing else."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], list[Tensor]]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        refuse_what_waits(func, args, kwargs)
        result = func(*args, **kwargs)
        self.calls.append((func, args, kwargs, _tensors(result)))
        return result

    def replay(self) -> None:
        for func, args, kwargs, results in self.calls:
            sources = {tensor.untyped_storage().data_ptr() for tensor in _tensors((args, kwargs))}
            for recorded, fresh in zip(results, _tensors(func(*args, **kwargs)), strict=True):
                if recorded.numel() and recorded.untyped_storage().data_ptr() not in sources:
                    recorded.copy_(fresh)


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_flatten(tree)[0] if isinstance(leaf, Tensor)]


class FakeStream:
    """Notes whom it waits for."""

    def __init__(self, name: str, notes: list[str]) -> None:
        self.name, self._notes = name, notes

    def wait_stream(self, other: "FakeStream") -> None:
        self._notes.append(f"{self.name} waits for {other.name}")


class FakeGraph:
    """A graph that is a tape."""

    def __init__(self) -> None:
        self.tape = Tape()
        self.replays = 0

    def replay(self) -> None:
        self.replays += 1
        self.tape.replay()


class FakeCuda:
    """What `captured.CudaCapture` uses of ``torch.cuda``."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.graphs: list[FakeGraph] = []
        self.captures: list[dict[str, Any]] = []
        self.main = FakeStream("main", self.notes)

    def Stream(self, device: torch.device) -> FakeStream:
        return FakeStream("side", self.notes)

    def graph_pool_handle(self) -> tuple[int, int]:
        return (0, 7)

    def current_stream(self, device: torch.device) -> FakeStream:
        return self.main

    @contextlib.contextmanager
    def stream(self, stream: FakeStream) -> Iterator[None]:
        self.notes.append(f"warm on {stream.name}")
        yield

    @property
    def CUDAGraph(self) -> Callable[[], FakeGraph]:
        return self._made

    def _made(self) -> FakeGraph:
        self.graphs.append(FakeGraph())
        return self.graphs[-1]

    @contextlib.contextmanager
    def graph(self, graph: FakeGraph, **options: Any) -> Iterator[None]:
        self.notes.append("capture")
        self.captures.append(options)
        with graph.tape:
            yield
