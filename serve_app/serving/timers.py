"""Which of Ray's timers would cut a conversation, and what to set instead. Pure."""

import dataclasses
from typing import Final

ENGINE_GRACE_S: Final = 10.0
"""After its sessions are over: Ray looks every 2 s whether they are, then the loop and the link are stopped."""
GATEWAY_GRACE_S: Final = 2.0
"""A gateway says goodbye so long before Ray closes what is left."""

UNLIMITED_S: Final = 7 * 24 * 3600
"""So long the fast proxy shall carry on where nothing limits a conversation. A port of a gateway that went rests as
long, and Ray has a thousand of them."""


@dataclasses.dataclass(frozen=True, slots=True)
class RayTimers:
    """What Ray was told, in seconds. None: not set, or not known.

    Attributes:
        haproxy: whether the fast proxy carries the conversations.
        request_timeout_s: a WebSocket is one request.
        hard_stop_s: how long a fast proxy that was replaced carries on.
        min_draining_s: when a gateway that was replaced loses its WebSockets, behind the fast proxy.
        graceful_shutdown_s: when a replica that was replaced is killed.
    """

    haproxy: bool
    request_timeout_s: float | None = None
    hard_stop_s: float | None = None
    min_draining_s: float | None = None
    graceful_shutdown_s: float | None = None


def engine_complaints(timers: RayTimers, drain_s: float) -> tuple[str, ...]:
    """What would cut a session of an engine that is replaced."""
    wanted_s = drain_s + ENGINE_GRACE_S
    if timers.graceful_shutdown_s is not None and timers.graceful_shutdown_s < wanted_s:
        return (
            f"an engine that is replaced is killed after {timers.graceful_shutdown_s:g} s, before its sessions' "
            f"engine.drain_s of {drain_s:g} s is over: leave graceful_shutdown_timeout_s of Engine out of the file, "
            f"or set it to {wanted_s:g}",
        )
    return ()


def gateway_complaints(timers: RayTimers, drain_s: float, longest_s: float | None) -> tuple[str, ...]:
    """What would cut a conversation at a gateway.

    Args:
        longest_s: of any conversation, tenants' included; None where nothing limits it.
    """
    told = []
    if timers.request_timeout_s:
        told.append(
            f"Ray cuts every conversation after http_options.request_timeout_s of {timers.request_timeout_s:g} s: "
            "leave it out"
        )
    if timers.haproxy:
        told += _fast_proxy_complaints(timers, drain_s, longest_s)
    elif timers.graceful_shutdown_s is not None and timers.graceful_shutdown_s < drain_s:
        told.append(
            f"a gateway that is replaced is killed after {timers.graceful_shutdown_s:g} s, before gateway.drain_s of "
            f"{drain_s:g} s is over: leave graceful_shutdown_timeout_s of Gateway out of the file"
        )
    return tuple(told)


def _fast_proxy_complaints(timers: RayTimers, drain_s: float, longest_s: float | None) -> list[str]:
    told = []
    if timers.min_draining_s is not None and timers.min_draining_s < drain_s:
        told.append(
            f"a gateway that is replaced loses its conversations after {timers.min_draining_s:g} s, before "
            f"gateway.drain_s of {drain_s:g} s is over: set RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S="
            f"{drain_s:g} before Ray starts, on every node"
        )
    needed_s = max(longest_s if longest_s is not None else UNLIMITED_S, drain_s)
    if timers.hard_stop_s is not None and timers.hard_stop_s < needed_s:
        longest = "without a limit" if longest_s is None else f"of up to {needed_s:g} s"
        told.append(
            f"the fast proxy cuts conversations {longest} without a word {timers.hard_stop_s:g} s after any gateway "
            "comes or goes: set RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S higher before Ray starts, on every node, "
            "or gateway.longest_s lower"
        )
    return told
