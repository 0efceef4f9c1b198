"""A result in words: what a person reads above the line of JSON."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from serve_app.bench.shapes import STAGES

GIB: Final = 1 << 30
HEAD: Final = (
    f"{'B':>4s} {'L':>6s} {'mean L':>7s} {'p50':>8s} {'p99':>8s} {'max':>8s}  "
    f"{'encode':>7s} {'lm':>7s} {'depth':>7s} {'decode':>7s}  {'floor':>7s} {'of it':>6s}  {'ref':>8s} {'ratio':>6s}"
)


def heading(result: Mapping[str, Any]) -> Iterator[str]:
    """Machine and model."""
    machine, model = result["machine"], result["model"]
    driver = f", driver {machine['driver']}" if machine["driver"] else ""
    yield f"device     {machine['device']}{driver}, {machine['memory_bytes'] / GIB:,.1f} GiB for this process"
    yield f"torch      {machine['torch']}, {machine['threads']} threads, attention: {machine['attention']}"
    rates = ", ".join(f"{rate / 1e12:,.2f} TFLOP/s {name}" for name, rate in machine["product_flop_s"].items())
    yield f"this run   copies {machine['copy_bytes_s'] / 1e9:,.1f} GB/s, products {rates}"
    parameters = f"{model['parameters'] / 1e6:,.1f} M parameters, {model['lm_parameters'] / 1e6:,.1f} M in the LM"
    yield f"model      {model['name']} {result['dtype']}: {parameters}, context {model['context']}"
    storage = result["storage"]
    kept = f" in {storage['kv']}" if storage["kv"] else ""
    shared = f", pages of {storage['page_steps']} steps {size(model['page_bytes'])}" if storage["page_steps"] else ""
    yield f"memory     weights {size(model['weights_bytes'])}, state {size(model['slot_bytes'])} a slot{shared}{kept}"
    yield f"counts     {', '.join(result['stages'])}; times in ms, copies to and from the device included"
    yield f"reference  {result['reference'] or 'not here: pip install --no-deps moshi==0.2.13'}"


def cell_line(cell: Mapping[str, Any]) -> str:
    """One batch."""
    start = f"{cell['rows']:4d} {cell['lengths']:>6s} {cell['mean_steps']:7.0f} "
    if "counted" not in cell:
        return start + f"does not fit: needs {size(cell['needs_bytes'])}"
    counted, stages, reference = cell["counted"], cell["stages_ms"], cell["reference"]
    times = f"{counted['p50_ms']:8.2f} {counted['p99_ms']:8.2f} {counted['max_ms']:8.2f}  "
    parts = " ".join(f"{stages[name]:7.2f}" if name in stages else f"{'-':>7s}" for name in STAGES)
    floor = f"  {cell['floor_ms']:7.2f} {100 * cell['floor_share']:5.0f}%"
    theirs = f"  {reference['p50_ms']:8.2f} {cell['ratio']:6.3f}" if reference else f"  {'-':>8s} {'-':>6s}"
    return start + times + parts + floor + theirs


def agreement_line(name: str, found: Mapping[str, Any]) -> str:
    """One comparison."""
    return f"{name:34s} {found['equal']} of {found['compared']} equal, greatest difference {found['worst']:.1e}"


def closing(result: Mapping[str, Any]) -> Iterator[str]:
    """What follows the table."""
    for found in result["capacity"]:
        start = f"sessions at L = {found['lengths']}: {found['by_memory']} by memory ({found['by_length']} in pages)"
        if found["by_time"] is None:
            yield f"{start}; by time unknown, measure two batches or more"
            continue
        further = "" if found["measured"] else " (drawn further than measured)"
        yield f"{start}, {found['by_time']} by time{further}: {found['sessions']}, {found['binds']} binds"
    kernels = result["kernels"]
    parts = ", ".join(f"{name} {count}" for name, count in kernels.items())
    yield f"kernels a tick: {sum(kernels.values())} ({parts})"
    sparse = result["sparse"]
    if isinstance(sparse, str):
        yield f"4 live rows among 64 slots: {sparse}"
    elif sparse is not None:
        yield f"4 live rows among 64 slots over 4 among 4: {sparse:.3f}"
    for run in result["sustained"]:
        spread = run["spread"]
        yield (
            f"{run['ticks']} ticks back to back, B={run['rows']}, L={run['lengths']}: p50 {spread['p50_ms']:.2f}, "
            f"p99 {spread['p99_ms']:.2f}, max {spread['max_ms']:.2f} ms, {run['underruns']} underruns"
        )


def size(count: float) -> str:
    """Bytes, for people."""
    return f"{count / GIB:,.2f} GiB" if count >= GIB else f"{count / (1 << 20):,.2f} MiB"
