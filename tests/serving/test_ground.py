"""What the launcher stands on, and what ``/info`` counts."""

import dataclasses
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from serve_app.audio.opus import Traffic
from serve_app.errors import ConfigError, EngineFull, ParameterRefused
from serve_app.serving.answers import refusal
from serve_app.serving.descendants import Descendants
from serve_app.serving.environment import QUIET_PORTS, environment, free_port, haproxy_works, quiet_ports
from serve_app.serving.info import describe
from serve_app.serving.meter import Meter
from serve_app.serving.page import page_folder
from tests.serving.test_directory import CARD


def test_the_fast_proxy_is_here_so_that_the_cluster_tests_mean_something() -> None:
    assert haproxy_works()


def test_a_taken_port_is_replaced_by_a_free_one() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert free_port("127.0.0.1", port) not in (0, port)
    assert free_port("127.0.0.1", port) == port


def test_a_host_that_is_not_ours_is_a_configuration_error() -> None:
    with pytest.raises(ConfigError, match=r"192\.0\.2\.77"):
        free_port("192.0.2.77", 0)


def test_the_environment_says_which_proxy_and_how_long_to_drain() -> None:
    values = environment(haproxy=True, drain_s=0, ports=(1, 2, 3))
    assert values["RAY_SERVE_ENABLE_HA_PROXY"] == "1"
    assert values["RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S"] == "0"
    assert values["RAY_SERVE_FALLBACK_PROXY_HTTP_PORT"] == "3"
    assert int(values["RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S"]) >= 3600
    longer = environment(haproxy=True, drain_s=600, ports=(1, 2, 3), longest_s=50_000.5)
    assert int(longer["RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S"]) > 50_000
    assert longer["RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S"] == "600"
    assert environment(haproxy=False, drain_s=0, ports=(1, 2, 3))["RAY_SERVE_ENABLE_HA_PROXY"] == "0"


def test_the_fast_proxy_logs_to_nowhere_because_addresses_hold_keys() -> None:
    target = Path(environment(haproxy=True, drain_s=0, ports=(1, 2, 3))["RAY_SERVE_HAPROXY_LOG_TARGET"])
    assert target.is_absolute()  # as HAProxy takes a socket's path
    assert not target.is_socket()


def test_descendants_are_found_remembered_and_ended() -> None:
    program = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'print(flush=True); input()'])"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()  # the grandchild lives
        family = Descendants(child.pid)  # not ours: the other tests' cluster is among those
        family.look()
        assert len(family.left()) == 1
        family.kill()
        child.wait(10)
    assert family.left() == []


def test_refusals_carry_status_reason_sentence_and_when_to_come_again() -> None:
    full = refusal(EngineFull(3))
    assert (full.status_code, full.headers["retry-after"]) == (503, "5")
    wrong = refusal(ParameterRefused("text_seed", "x", "not a whole number"))
    assert wrong.status_code == 400
    assert "retry-after" not in wrong.headers


def test_traffic_of_conversations_is_counted_while_they_live_and_after() -> None:
    meter = Meter()
    with meter.conversation(Traffic(1_000, 1.0), Traffic()):
        assert meter.conversations == 1
        assert meter.opus_in.kbps == 8.0
    with meter.conversation(Traffic(3_000, 1.0), Traffic()):
        assert meter.opus_in.kbps == 16.0
    assert meter.conversations == 0
    assert meter.opus_out.kbps == 0.0


def test_info_compares_tokens_with_raw_audio() -> None:
    rates = describe([CARD], [CARD.model], Meter(), "haproxy", "gate")["bit_rate"]
    assert rates["raw_kbps"] == 768
    assert rates["tokens_kbps"] == pytest.approx(8 * 11 * 12.5 / 1_000)
    assert rates["raw_to_tokens"] == pytest.approx(698.2)


def test_info_without_an_engine_still_answers() -> None:
    info = describe([], [], Meter(), "python", "gate")
    assert (info["slots"], info["model"], info["proxy_mode"]) == (0, None, "python")


def test_info_names_the_gateway_whose_numbers_it_shows() -> None:
    assert describe([CARD], [CARD.model], Meter(), "haproxy", "gate")["gateway"]["name"] == "gate"


def test_info_tells_what_a_stage_takes_for_a_tick_and_for_a_frame() -> None:
    card = dataclasses.replace(CARD, stage_ms={"lm": (8.0, 9.0)}, frame_ms={"lm": 2.0})
    engine = describe([card], [card.model], Meter(), "haproxy", "gate")["engines"][0]
    assert engine["stage_ms"] == {"lm": {"p50": 8.0, "p99": 9.0}}
    assert engine["ms_per_frame"] == {"lm": 2.0}


def test_info_shows_who_goes_and_every_complaint_once() -> None:
    card = dataclasses.replace(CARD, leaves_in_s=12.4, complaints=("killed too soon",))
    info = describe([card, card], [card.model], Meter(), "haproxy", "gate", ("cut too soon",))
    assert info["engines"][0]["leaves_in_s"] == 12
    assert info["complaints"] == ["cut too soon", "killed too soon"]


def test_the_page_is_found() -> None:
    folder = page_folder()
    assert folder is not None
    assert (folder / "index.html").is_file()


def test_ports_for_later_are_free_different_and_no_clients() -> None:
    ports = quiet_ports("127.0.0.1", 3)
    assert len(set(ports)) == 3
    assert all(port in QUIET_PORTS and free_port("127.0.0.1", port) == port for port in ports)
