"""Where the path from client to engine and back breaks, and what binds there.

    python -m load_tests.wall
    python -m load_tests.wall --first 50 --step 50 --seconds 20 --gateways 2

Starts the pass-through engine behind its gateways on a free port, then holds more and more Opus conversations at
real-time pace until the answers come too late or not at all. Each step says latency, losses and who used how much
processor time. Generator and server share this machine, and the report says so. Linux only.
"""

import argparse
import contextlib
import dataclasses
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self

import yaml

from load_tests import sampler
from load_tests.account import without_nan
from load_tests.memory import started
from load_tests.pace import SPEAKING
from load_tests.publish import ROOT, draw_wall, facts
from load_tests.verdict import Limits, Verdict

CONFIG: Final = ROOT / "configs" / "passthrough.yaml"
GENERATOR: Final = "generator"
OTHERS: Final = "others on this machine"
EDGE_S: Final = 1.0
"""Of a step's first and last second the processors' use is not counted."""
REST_S: Final = 2.0
"""Between steps, for slots to be freed."""
NOTICEABLE: Final = 0.1
"""Cores."""
BUSY: Final = 0.9
"""Above this share a core, or all of them, are taken to be what binds: what is left is the scheduler's."""
TRIES: Final = 2
"""A step that goes wrong is played once more: one hiccup of a shared machine is no wall."""
PER_WORKER: Final = 150
"""Conversations that one process of the generator holds; more of them get another."""


@dataclasses.dataclass(frozen=True, slots=True)
class Use:
    """Processor time of a role during a step, in cores.

    Attributes:
        cores: of all its processes together.
        busiest: of the one that used most: a Python process has one core at most.
    """

    cores: float
    busiest: float
    processes: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """So many conversations at a time, and what came of it. The numbers are those of `account.Report`."""

    sessions: int
    opened: int
    lost: int
    ended: int
    p50_ms: float
    p99_ms: float
    max_ms: float
    late_ms: float
    uses: Mapping[str, Use]

    @classmethod
    def of(cls, sessions: int, reports: Sequence[Mapping[str, Any]], uses: Mapping[str, Use]) -> Self:
        """From the reports of the generator's processes: percentiles are those of the worst of them."""

        def worst(name: str) -> float:
            values = [report[name] for report in reports]
            return math.nan if None in values else float(max(values, default=math.nan))

        return cls(
            sessions=sessions,
            opened=sum(report["opened"] for report in reports),
            lost=sum(report["frames_lost"] for report in reports),
            ended=sum(sum(report["endings"].values()) for report in reports),
            p50_ms=worst("latency_p50_ms"),
            p99_ms=worst("latency_p99_ms"),
            max_ms=worst("latency_max_ms"),
            late_ms=worst("generator_late_p99_ms"),
            uses=uses,
        )

    def good(self, limits: Limits) -> bool:
        """All opened, nothing lost, nobody cut, in time, by a generator that was in time."""
        whole = self.opened == self.sessions and not self.lost and not self.ended
        return whole and self.p99_ms <= limits.p99_ms and not self.late_ms > limits.late_ms

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        fields = {name: without_nan(value) for name, value in dataclasses.asdict(self).items()}
        return fields | {"uses": {role: dataclasses.asdict(use) for role, use in self.uses.items()}}

    def __str__(self) -> str:
        uses = ", ".join(
            f"{role} {use.cores:.2f}" + (f" (busiest {use.busiest:.2f})" if use.processes > 1 else "")
            for role, use in sorted(self.uses.items(), key=lambda item: -item[1].cores)
            if use.cores >= 0.01
        )
        return (
            f"{self.sessions:4} sessions: {self.opened} opened, {self.lost} frames lost, {self.ended} cut;"
            f" p50 {self.p50_ms:.1f}  p99 {self.p99_ms:.1f}  max {self.max_ms:.1f} ms;"
            f" generator late p99 {self.late_ms:.1f} ms\n                cores: {uses}"
        )


def what_binds(step: Step, cores: int, limits: Limits) -> str:
    """What a step that went wrong had too little of, as far as processor time tells."""
    total = sum(use.cores for use in step.uses.values())
    largest, use = max(step.uses.items(), key=lambda item: item[1].cores, default=("nobody", Use(0, 0, 0)))
    busiest = max(
        ((role, use.busiest) for role, use in step.uses.items() if role != OTHERS),
        key=lambda item: item[1],
        default=("", 0.0),
    )
    late = " The generator was late itself." if step.late_ms > limits.late_ms else ""
    if total >= BUSY * cores:
        return f"the machine: {total:.2f} of {cores} cores in use, most of it by {largest} ({use.cores:.2f}).{late}"
    if busiest[1] >= BUSY:
        return f"one process of {busiest[0]}: {busiest[1]:.2f} of a core, and it has no more than one.{late}"
    if late:
        return f"the generator: late by {step.late_ms:.0f} ms at p99, with processors to spare."
    return f"no processor ({total:.2f} of {cores} cores in use): something waits."


def strangers(step: Step) -> str:
    """A word about others who used the machine meanwhile; "" where nobody did."""
    others = step.uses.get(OTHERS, Use(0, 0, 0)).cores
    return f" Others on this machine used {others:.2f} cores meanwhile." if others >= NOTICEABLE else ""


def verdict(steps: Sequence[Step], at_least: int, limits: Limits) -> Verdict:
    """Pass when so many sessions were held well. Whatever a late generator hides is not a fail."""
    good = [step.sessions for step in steps if step.good(limits)]
    if max(good, default=0) >= at_least:
        return Verdict.PASS
    late = any(step.late_ms > limits.late_ms for step in steps)
    return Verdict.GENERATOR_TOO_SLOW if late else Verdict.FAIL


def uses_between(
    before: Mapping[int, float], after: Mapping[int, float], roles: Mapping[int, str], seconds: float
) -> dict[str, Use]:
    """CPU times of processes at two moments to cores by role."""
    grown: dict[str, list[float]] = {}
    for process, used in sampler.growth(before, after).items():
        grown.setdefault(roles[process], []).append(used / seconds)
    return {role: Use(round(sum(used), 3), round(max(used), 3), len(used)) for role, used in grown.items()}


def play(url: str, root: int, sessions: int, seconds: float) -> Step:
    """One step: the generator in processes of its own, and a look at the processors while it speaks."""
    shares = [sessions // n for n in [math.ceil(sessions / PER_WORKER)] for _ in range(n)]
    shares[0] += sessions - sum(shares)
    with contextlib.ExitStack() as stack:
        generators = [stack.enter_context(_generator(url, share, seconds)) for share in shares]
        for generator in generators:
            _wait_until_speaking(generator)
        time.sleep(EDGE_S)
        roles = {process: sampler.role_of(process) for process in sampler.family_of([root])}
        roles |= {generator.pid: GENERATOR for generator in generators}
        before, all_before, began_s = sampler.cpu_s(roles), sampler.machine_s(), time.monotonic()
        time.sleep(max(EDGE_S, seconds - 2 * EDGE_S))
        after, all_after, passed_s = sampler.cpu_s(roles), sampler.machine_s(), time.monotonic() - began_s
        uses = uses_between(before, after, roles, passed_s)
        ours = sum(use.cores for use in uses.values())
        others = max(0.0, (all_after - all_before) / passed_s - ours)
        uses[OTHERS] = Use(round(others, 3), round(others, 3), 1)
        reports = [json.loads(generator.communicate()[0].strip().splitlines()[-1]) for generator in generators]
    return Step.of(sessions, reports, uses)


def configured(gateways: int, slots: int, folder: Path) -> Path:
    """The pass-through configuration with more gateways and slots, written to the folder."""
    content = yaml.safe_load(CONFIG.read_text())
    arguments = {application["name"]: application["args"] for application in content["applications"]}
    arguments["engine"]["slots"] = slots
    arguments["gateway"]["replicas"] = gateways
    path = folder / "wall.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Exit status: 0 when ``--at-least`` sessions were held well, 1 when not, 2 the generator was late."""
    options = _parser().parse_args(argv)
    limits, cores, steps = Limits(p99_ms=options.p99_ms), sampler.cores(), list[Step]()
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, (options.out / "server.log").open("w") as log:
        most = range(options.first, options.most + 1, options.step)
        config = configured(options.gateways, most[-1] + options.step, Path(folder))
        with started(config, log) as deployment:
            print(f"{options.gateways} gateways, the generator on the same {cores} cores", flush=True)
            for sessions in most:
                for _ in range(TRIES):
                    steps.append(play(deployment.url, deployment.process, sessions, options.seconds))
                    print(steps[-1], flush=True)
                    time.sleep(REST_S)
                    if steps[-1].good(limits):
                        break
                else:
                    break
            told = facts(deployment.url)
    good = max((step.sessions for step in steps if step.good(limits)), default=0)
    bound = "not reached." if steps[-1].good(limits) else what_binds(steps[-1], cores, limits)
    bound += "" if OTHERS in bound else strangers(steps[-1])
    judgement = verdict(steps, options.at_least, limits)
    print(f"held well  {good} sessions (p99 <= {limits.p99_ms:g} ms, nothing lost)\nbinds      {bound}")
    print(f"verdict    {judgement}: at least {options.at_least} were asked for")
    report = {
        "verdict": str(judgement),
        "sessions": good,
        "binds": bound,
        "gateways": options.gateways,
        "same_machine": True,
        "seconds": options.seconds,
        "facts": told,
        "steps": [step.plain() for step in steps],
    }
    (options.out / "wall.json").write_text(json.dumps(report, indent=1, allow_nan=False) + "\n")
    draw_wall(report["steps"], f"{good} sessions; binds: {bound}", options.out / "wall.png")
    print(f"reports    {options.out}")
    return int(judgement)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m load_tests.wall", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--first", type=int, default=50)
    parser.add_argument("--step", type=int, default=50)
    parser.add_argument("--most", type=int, default=600)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each step")
    parser.add_argument("--gateways", type=int, default=2)
    parser.add_argument("--p99-ms", type=float, default=Limits.p99_ms)
    parser.add_argument("--at-least", type=int, default=100, help="sessions for a pass")
    parser.add_argument("--out", type=Path, default=Path("out/load/wall"), help="wall.json, wall.png, server.log")
    return parser


@contextlib.contextmanager
def _generator(url: str, sessions: int, seconds: float) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "load_tests.pace", "--url", url, "--json"]
    numbers = ["--sessions", str(sessions), "--seconds", str(seconds)]
    with subprocess.Popen([*command, *numbers], stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            yield process
        finally:
            process.kill()


def _wait_until_speaking(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    if not any(line.strip() == SPEAKING for line in process.stdout):
        raise SystemExit("the generator did not start")


if __name__ == "__main__":
    sys.exit(main())
