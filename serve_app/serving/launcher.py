"""Starts Ray, all applications and the proxy with one command, and ends all of it with one Ctrl-C.

``serve run FILE`` starts the same applications; what it cannot do is set the environment that Ray Serve reads while it
is imported, and with it the fast proxy. Everything here that writes to the environment does so before Ray is imported.
SIGUSR1 reads the file again and rolls out what changed (docs/rollout.md).
"""

import asyncio
import contextlib
import json
import logging
import math
import os
import signal
import threading
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, Final

from serve_app.checkpoint.named import source_of
from serve_app.checkpoint.source import resolve
from serve_app.config import (
    GATEWAY_APPLICATION,
    LOGS_VARIABLE,
    LOOPBACK,
    ApplicationSettings,
    Config,
    is_loopback,
    log_format,
    read_config,
    require_key_beyond_loopback,
)
from serve_app.errors import ChorusError, EngineLost
from serve_app.serving.descendants import Descendants
from serve_app.serving.discovery import Discovery
from serve_app.serving.environment import environment, free_port, haproxy_works, quiet_ports
from serve_app.serving.voices import read_voices

OBJECT_STORE_BYTES: Final = 80 * 1024 * 1024
"""Frames never travel through Ray's object store; this is about the least that it accepts."""
POLL_S: Final = 0.2
SEEN_S: Final = 1.0
EVERYWHERE: Final = {"0.0.0.0": LOOPBACK, "::": "::1"}
"""Addresses that mean all of this machine's, and where such a server is reached from here."""
START_S: Final = 1_800.0
"""The 7B weights have to be fetched and loaded in this."""
FAREWELL_S: Final = 4.0
STOP_SERVE_S: Final = 3.0
STOP_RAY_S: Final = 2.0
"""With the farewell below ten seconds in all."""


class Launcher:
    """One deployment on a Ray of its own, on this machine.

    Args:
        config: what to start.
        port: in place of the file's.
        say: prints a line for the person who started it.
    """

    def __init__(self, config: Config, port: int | None, say: Callable[[str], None]) -> None:
        self._config = config
        self._http = config.serve.http_options
        self._wanted = self._http.port if port is None else port
        self._say = say
        self._children = Descendants(os.getpid())
        self._ray_runs = False
        self._discovery: Discovery | None = None
        self.port = 0

    def run(self) -> int:
        """Start, wait for a signal, stop. Returns the exit status.

        Raises:
            ConfigError: the configuration cannot be served as it stands.
            CheckpointError: a file of a checkpoint is missing, or cannot be read or fetched.
        """
        require_key_beyond_loopback(self._http.host)
        if self._config.serve.logs is not None:
            os.environ[LOGS_VARIABLE] = self._config.serve.logs
        log_format()  # this and what follows would else be told after Ray has started
        _require_files(self._config)
        self.port = free_port(self._http.host, self._wanted)
        if self._wanted and self.port != self._wanted:
            self._say(f"port {self._wanted} is taken, using {self.port}")
        _on_signals(_interrupt)
        try:
            return self._serve()
        except KeyboardInterrupt:
            self._say("stopping")
            return 0
        finally:
            _on_signals(signal.SIG_IGN)
            self._stop()

    def _serve(self) -> int:
        haproxy = haproxy_works()
        ports = quiet_ports("0.0.0.0", 3)
        gateway = self._config.gateway
        os.environ.update(
            environment(haproxy=haproxy, drain_s=gateway.drain_s, ports=ports, longest_s=gateway.longest_s)
        )
        self._start_ray()
        problem = self._deploy(self._config.serve.applications) or self._wait_until_ready()
        if problem is not None:
            self._say(f"cannot start: {problem}")
            return 1
        here = is_loopback(self._http.host) or self._http.host in EVERYWHERE
        name = "localhost" if here else self._http.host
        wanted: list[int] = []
        signal.signal(signal.SIGUSR1, lambda number, frame: wanted.append(number))
        self._say(f"http://{name}:{self.port}")
        while True:
            time.sleep(SEEN_S)
            if wanted:
                wanted.clear()
                self._say(self._roll_out())

    def _roll_out(self) -> str:
        """Read the file again and replace the applications that changed. Returns what came of it."""
        try:
            config = read_config(self._config.path)
            _require_files(config)
        except ChorusError as error:
            return f"nothing changed: {error}"
        before = self._config.serve
        changed = [application for application in config.serve.applications if application not in before.applications]
        if not changed:
            return "nothing changed"
        names = " and ".join(application.name for application in changed)
        self._config = config
        self._say(f"rolling out {names}")
        problem = self._deploy(changed) or self._wait_until_rolled_out([application.name for application in changed])
        return f"rolled out {names}" if problem is None else f"cannot roll out {names}: {problem}"

    def _start_ray(self) -> None:
        import ray

        wanted = sum(engine.most_engines * engine.num_cpus for engine in self._config.engines.values())
        self._ray_runs = True
        context: Any = ray.init(
            address="local",
            namespace="serve",
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            # Ray starts an idle worker for each CPU that it is told of, and ours reserve none.
            num_cpus=max(1, math.ceil(wanted)),
            logging_level=logging.ERROR,
            log_to_driver=True,
            _node_ip_address=LOOPBACK,
        )
        _on_signals(_interrupt)  # Ray has just put its own handler in place
        node = context.address_info
        self._discovery = Discovery(Path(node["session_dir"]), node["metrics_export_port"])
        try:
            self._discovery.write()
        except OSError as error:
            self._say(f"Prometheus will not find the metrics by itself: {error}")
        if log_format() == "json":
            from serve_app.serving.worker_lines import show_as_json

            show_as_json()

    def _deploy(self, applications: Sequence[ApplicationSettings]) -> str | None:
        """Start applications, or replace them. Returns why it failed."""
        from ray import serve

        from serve_app.serving import engine_app, gateway_app

        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        settings = self._config.serve
        serve.start(
            proxy_location=settings.proxy_location,
            http_options={**self._http.model_dump(), "port": self.port},
            logging_config=settings.logging_config,
        )
        targets = [
            serve.RunTarget(
                target=(gateway_app if application.name == GATEWAY_APPLICATION else engine_app).build(application.args),
                name=application.name,
                route_prefix=application.route_prefix,
                logging_config=settings.logging_config,
            )
            for application in applications
        ]
        try:
            serve.run_many(targets, wait_for_applications_running=False)
        except RuntimeError as error:
            return str(error)
        return None

    def _wait_until_ready(self) -> str | None:
        """Wait for the first conversation to be possible, with each model. Returns why it never will be."""
        from ray import serve

        host = EVERYWHERE.get(self._http.host, self._http.host)
        address = f"http://[{host}]:{self.port}/ready" if ":" in host else f"http://{host}:{self.port}/ready"
        deadline_s = time.monotonic() + START_S
        gateways: set[str] = set()
        while time.monotonic() < deadline_s:
            gateways |= _ready_gateways(address, self._config.models)
            if len(gateways) >= self._config.gateway.replicas:
                return None
            problem = _failure(serve.status().applications)
            if problem is not None:
                return problem
            time.sleep(POLL_S)
        return f"not ready after {START_S:g} s"

    def _wait_until_rolled_out(self, names: Sequence[str]) -> str | None:
        """Wait until every replica is a new one; old ones may still have sessions. Returns why it never will."""
        from ray import serve

        deadline_s = time.monotonic() + START_S
        while time.monotonic() < deadline_s:
            time.sleep(SEEN_S)  # Ray shows the old version's state for a moment
            applications = {name: serve.status().applications[name] for name in names}
            problem = _failure(applications)
            if problem is not None or all(application.status == "RUNNING" for application in applications.values()):
                return problem
        return f"not done after {START_S:g} s"

    def _stop(self) -> None:
        """End everything within ten seconds, whatever state it is in. Nothing that we started survives."""
        if not self._ray_runs:
            return
        self._children.look()
        if self._discovery is not None:
            self._discovery.remove()
        # Ray forwards what its processes say about dying in the wrong order.
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere), contextlib.redirect_stdout(nowhere):
            _bounded(_say_farewell, FAREWELL_S)
            self._children.look()
            _bounded(_stop_serve, STOP_SERVE_S)
            _bounded(_stop_ray, STOP_RAY_S)
        self._children.kill()


def _require_files(config: Config) -> None:
    """Look at what engines will read, and fetch it: Ray would start each of them three times before it gave up."""
    for engine in config.engines.values():
        read_voices(engine.prompts.voices)
        if engine.checkpoint is not None:
            resolve(source_of(engine.checkpoint))


def _say_farewell() -> None:
    """Let the engines tell everybody that the server goes, and wait until they have."""
    asyncio.run(_farewell())


async def _farewell() -> None:
    from serve_app.serving.ray_calls import DirectoryHandle

    directory = DirectoryHandle()
    await directory.close()
    while any(card.used or not card.draining for card in await directory.engines()):
        await asyncio.sleep(POLL_S)


def _stop_serve() -> None:
    from ray import serve

    serve.shutdown()  # type: ignore[no-untyped-call]


def _stop_ray() -> None:
    import ray

    ray.shutdown()


def _bounded(work: Callable[[], None], limit_s: float) -> None:
    """Run something of Ray's that may hang or raise; what it leaves behind is killed afterwards."""

    def quietly() -> None:
        with contextlib.suppress(Exception):
            work()

    thread = threading.Thread(target=quietly, daemon=True)
    thread.start()
    thread.join(limit_s)


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _on_signals(handler: Any) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handler)


def _ready_gateways(address: str, models: Sequence[str]) -> set[str]:
    """Ask whichever gateway the proxy picks, which takes turns: its name if it is ready and knows these models."""
    try:
        with urllib.request.urlopen(address, timeout=2) as response:
            told = json.loads(response.read())
            up = all(told["models"][model] != EngineLost.reason for model in models)
            return {str(told["gateway"])} if up else set()
    except (OSError, ValueError, LookupError):  # refusals included; the proxy's own words before there is a gateway
        return set()


def _failure(applications: Mapping[str, Any]) -> str | None:
    """Why one of them will never run; None while they may."""
    for name, application in applications.items():
        if application.status in ("DEPLOY_FAILED", "UNHEALTHY"):
            return f"application {name}: {_first_cause(application)}"
    return None


def _first_cause(application: Any) -> str:
    """The end of the longest message: Ray puts the trace of the replica's error there."""
    messages = [str(application.message), *(str(deployment.message) for deployment in application.deployments.values())]
    return max(messages, key=len)
