"""What a tick moves between host and device: everything in one block each way, at addresses that never change."""

import dataclasses
import itertools
import math
from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor

from serve_app.engine.batch import TickBatch, TickResult
from serve_app.model.duplex import TickOutput
from serve_app.model.embedding import UNGENERATED_TOKEN
from serve_app.units import FRAME_SAMPLES

_ALIGNMENT_BYTES: Final = 64
"""Of every part of a block: a vector load's width, so that a kernel may read a part as it would a tensor of its own."""

Shape = tuple[torch.dtype, tuple[int, ...]]


@dataclasses.dataclass(frozen=True, slots=True)
class TickShape:
    """How wide the tick of a bucket is.

    Attributes:
        rows: R, live and padding.
        dep_q: codes of a frame.
        heads: extra heads and their classes; (0, 0) where the model has none.
    """

    rows: int
    dep_q: int
    heads: tuple[int, int] = (0, 0)


@dataclasses.dataclass(frozen=True, slots=True)
class TickInputs:
    """What a tick reads, side by side in one block.

    Attributes:
        pcm: ``fp32[R, 1, 1920]``, 0 for padding.
        slots: ``int64[R]``; scratch for padding, which therefore does not execute.
        twin_of: ``int64[R]``, the row that each null row follows; 0 for padding.
        twin_slots: ``int64[R]``, the null rows' slots; scratch for padding.
        given: ``int64[R, dep_q + 1]``, text and codes in place of sampled ones; -2 samples.
        ended: ``bool[R]``, who hears the end of input.
    """

    pcm: Tensor
    slots: Tensor
    twin_of: Tensor
    twin_slots: Tensor
    given: Tensor
    ended: Tensor

    @staticmethod
    def shapes(shape: TickShape) -> tuple[Shape, ...]:
        """Of the attributes, in their order."""
        rows = shape.rows
        index = (torch.int64, (rows,))
        given = (torch.int64, (rows, shape.dep_q + 1))
        return (torch.float32, (rows, 1, FRAME_SAMPLES)), index, index, index, given, (torch.bool, (rows,))


@dataclasses.dataclass(frozen=True, slots=True)
class TickOutputs:
    """What a tick writes, side by side in one block; see `batch.TickResult`.

    Attributes:
        pcm: ``fp32[R, 1920]``.
        heads: ``fp32[R, H, C]``.
        text: ``int64[R]``.
        codes: ``int16[R, dep_q]``.
        audible, finite: ``bool[R]``.
    """

    pcm: Tensor
    heads: Tensor
    text: Tensor
    codes: Tensor
    audible: Tensor
    finite: Tensor

    @staticmethod
    def shapes(shape: TickShape) -> tuple[Shape, ...]:
        """Of the attributes, in their order."""
        rows, flag = shape.rows, (torch.bool, (shape.rows,))
        voice, heads = (torch.float32, (rows, FRAME_SAMPLES)), (torch.float32, (rows, *shape.heads))
        return voice, heads, (torch.int64, (rows,)), (torch.int16, (rows, shape.dep_q)), flag, flag

    def take(self, output: TickOutput) -> None:
        """Write what a tick gave."""
        self.pcm.copy_(output.pcm)
        if output.heads is not None and self.heads.numel():
            self.heads.copy_(output.heads)
        self.text.copy_(output.text)
        self.codes.copy_(output.codes)
        self.audible.copy_(output.decoded)
        self.finite.copy_(output.finite)


class Block:
    """Tensors of several types side by side in one allocation of bytes, so that one copy moves them all.

    Args:
        shapes: of the parts.
        pinned: host memory that the device reads by itself, without waiting for the host.
    """

    def __init__(self, shapes: tuple[Shape, ...], device: torch.device, *, pinned: bool = False) -> None:
        self._shapes = shapes
        padded = [-(-_size_bytes(shape) // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES for shape in shapes]
        self._starts = [0, *itertools.accumulate(padded)]
        self.bytes = torch.zeros(self._starts[-1], dtype=torch.uint8, device=device, pin_memory=pinned)
        self.parts = self.views(self.bytes)

    def views(self, block: Tensor) -> tuple[Tensor, ...]:
        """The parts of a block of bytes with this layout."""
        return tuple(
            block[start : start + _size_bytes(shape)].view(shape[0]).view(shape[1])
            for start, shape in zip(self._starts, self._shapes, strict=False)
        )

    def copy_(self, source: "Block") -> None:
        """Take over another block of the same shapes; on a GPU nobody waits for it."""
        self.bytes.copy_(source.bytes, non_blocking=True)


class TickBuffers:
    """Inputs and outputs of the ticks of one width, on the host (pinned beside a GPU) and on the device.

    Allocated once: graphs know the device's addresses. One thread.

    Attributes:
        shape: how wide.
        inputs, outputs: on the device.
    """

    def __init__(self, shape: TickShape, scratch: int, device: torch.device) -> None:
        self.shape, self._scratch = shape, scratch
        host, pinned = torch.device("cpu"), device.type == "cuda"
        given, said = TickInputs.shapes(shape), TickOutputs.shapes(shape)
        self._host_in, self._in = Block(given, host, pinned=pinned), Block(given, device)
        self._host_out, self._out = Block(said, host, pinned=pinned), Block(said, device)
        self.inputs, self.outputs = TickInputs(*self._in.parts), TickOutputs(*self._out.parts)
        # Arrays over the host's blocks: a tick indexes numpy, which costs a tenth of indexing a tensor.
        self._write = [part.numpy() for part in self._host_in.parts]
        self.clear()

    def tensors(self) -> tuple[Tensor, ...]:
        """Everything that has an address."""
        return (*self._host_in.parts, *self._in.parts, *self._out.parts, *self._host_out.parts)

    def clear(self) -> None:
        """All rows padding, on host and device."""
        pcm, slots, twin_of, twin_slots, given, ended = self._write
        pcm[:], slots[:], twin_of[:], twin_slots[:] = 0, self._scratch, 0, self._scratch
        given[:], ended[:] = UNGENERATED_TOKEN, False
        self.send()

    def fill(self, batch: TickBatch, twins: Mapping[int, int]) -> None:
        """Put a tick's rows first and make the rest padding. The host alone; no row may be left from the last tick.

        Args:
            twins: slot of the null row, by the slot of the session.
        """
        pcm, slots, twin_of, twin_slots, given, ended = self._write
        count = batch.rows
        pcm[:count, 0], pcm[count:] = batch.pcm, 0
        slots[:count], slots[count:] = batch.slots, self._scratch
        given[:], ended[:] = UNGENERATED_TOKEN, False
        if batch.given is not None:
            given[:count] = batch.given
        if batch.ended is not None:
            ended[:count] = batch.ended
        twin_of[:], twin_slots[:] = 0, self._scratch
        if twins:
            pairs = [(row, twins[slot]) for row, slot in enumerate(batch.slots.tolist()) if slot in twins]
            for index, pair in enumerate(pairs):
                twin_of[index], twin_slots[index] = pair

    def send(self) -> None:
        """One copy to the device."""
        self._in.copy_(self._host_in)

    def fetch(self) -> None:
        """One copy back; what it brings is there when the device has done it."""
        self._host_out.copy_(self._out)

    def result(self, rows: int, stage_ms: Mapping[str, float]) -> TickResult:
        """The first so many rows of what was fetched, as views of one copy: the block itself is the next tick's."""
        kept = TickOutputs(*(part[:rows] for part in self._host_out.views(self._host_out.bytes.clone())))
        return TickResult(
            pcm=kept.pcm.numpy(),
            audible=kept.audible.numpy(),
            text_token=kept.text.numpy(),
            codes=kept.codes.numpy(),
            finite=kept.finite.numpy(),
            stage_ms=stage_ms,
            heads=kept.heads.numpy() if kept.heads.shape[1] else None,
        )


def _size_bytes(shape: Shape) -> int:
    dtype, size = shape
    return dtype.itemsize * math.prod(size)
