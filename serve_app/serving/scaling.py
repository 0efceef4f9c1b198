"""Ray Serve's autoscaling of engines: how they are comes from each engine, how many there should be from `admission`.

Ray pickles this module by value and runs the policy in its controller, a few times a second; the delays are Ray's own.
An engine that goes is drained like one that a new version replaces: Ray takes it from the routers, waits for its calls,
which are its leases, and ends it after the deployment's grace.
"""

from collections.abc import Mapping
from typing import Any, Final, cast

from ray.serve.config import AutoscalingConfig, AutoscalingContext, AutoscalingPolicy

from serve_app.admission.scaling import EngineLoad, ScalingRules, engines_wanted
from serve_app.config import ScalingSettings

WINDOW_S: Final = 12.0
"""What engines say is kept for so long; they are asked five times in it. Ray complains below ten."""
DELAYS: Final = ("upscale_delay_s", "downscale_delay_s")


class EnginePolicy:
    """The policy of one deployment. Keeps nothing: Ray keeps since when it wants more or fewer.

    Args:
        rules: as `ScalingRules`; JSON, because Ray wants it so.
    """

    def __init__(self, **rules: Any) -> None:
        self._rules = ScalingRules(**rules)

    def __call__(self, context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        """How many engines there should be, before Ray's delays."""
        loads = latest_loads(context.raw_metrics or {})
        running: int = context.current_num_replicas
        engines: int = context.target_num_replicas
        return engines_wanted(self._rules, loads, engines, silent=running - len(loads)), {}


def autoscaling(settings: ScalingSettings, first_engines: int) -> AutoscalingConfig:
    """What Ray is told of a deployment of engines."""
    rules = settings.model_dump(exclude=set(DELAYS))
    path = f"{EnginePolicy.__module__}:{EnginePolicy.__qualname__}"
    return AutoscalingConfig(
        min_replicas=settings.min_engines,
        max_replicas=settings.max_engines,
        initial_replicas=first_engines,
        look_back_period_s=WINDOW_S,
        upscale_delay_s=settings.upscale_delay_s,
        downscale_delay_s=settings.downscale_delay_s,
        policy=cast(Any, AutoscalingPolicy)(policy_function=path, policy_kwargs=rules),
    )


def figures(load: EngineLoad) -> dict[str, float]:
    """As an engine says it to Ray: numbers by name."""
    return {
        "slots": load.slots,
        "used": load.used,
        "fixed_s": load.fixed_s,
        "per_row_s": load.per_row_s,
        "late": int(load.late),
    }


def latest_loads(metrics: Mapping[str, Mapping[Any, Any]]) -> list[EngineLoad]:
    """The last word of every engine that has spoken.

    Args:
        metrics: name to engine to values with their times, oldest first.
    """
    said: dict[Any, dict[str, float]] = {}
    for name, engines in metrics.items():
        for engine, values in engines.items():
            if values:
                said.setdefault(engine, {})[name] = values[-1].value
    return [_load(words) for words in said.values() if "slots" in words]


def _load(words: Mapping[str, float]) -> EngineLoad:
    return EngineLoad(
        slots=int(words["slots"]),
        used=int(words["used"]),
        fixed_s=words["fixed_s"],
        per_row_s=words["per_row_s"],
        late=bool(words["late"]),
    )
