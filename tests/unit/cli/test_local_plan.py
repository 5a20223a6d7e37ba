# SPDX-License-Identifier: Apache-2.0
"""Names, ports, command lines and words of a cluster on this machine."""

import socket
import sys
from pathlib import Path

import pytest

from lessor.cli.failure import Failure
from lessor.cli.local_plan import (
    ENGINE_PORT,
    PORTS,
    Plan,
    answers,
    check_ports,
    how_ended,
    last_words,
    make_plan,
    shell_line,
)
from lessor.server.command import parse
from tests.ports import free_port


def plan(count: int = 3, ports: str = "", engine_port: int = ENGINE_PORT, cluster_lease: str = "") -> Plan:
    return make_plan(count, ports, engine_port, "some/where", cluster_lease)


def test_the_usual_ports_go_on_in_steps_of_ten_thousand() -> None:
    assert plan().ports == (2379, 22379, 32379)
    assert plan(1).ports == (2379,)
    assert plan(5).ports == (2379, 22379, 32379, 42379, 52379)
    assert plan(len(PORTS)).ports == PORTS
    assert plan().endpoints == "127.0.0.1:2379,127.0.0.1:22379,127.0.0.1:32379"


def test_ports_that_are_chosen() -> None:
    assert plan(2, "5001, 5002").ports == (5001, 5002)


@pytest.mark.parametrize(
    ("count", "ports", "engine_port", "text"),
    [
        (7, "", ENGINE_PORT, "there are 6 usual ports: name 7 with --ports"),
        (3, "1,2", ENGINE_PORT, "--ports names 2 ports, and --local asks for 3 nodes: name 3"),
        (2, "1,x", ENGINE_PORT, "--ports: '1,x' is no list of numbers such as 2379,22379,32379"),
        (2, "1,65536", ENGINE_PORT, "a port is a number from 1 to 65535"),
        (2, "0,1", ENGINE_PORT, "a port is a number from 1 to 65535"),
        (1, "", 65535, "and 65534 for the engine"),
        (2, "5000,5000", ENGINE_PORT, "each node needs a port of its own"),
        (1, "5000", 5000, "choose others with --ports or --engine-port"),
        (1, "5001", 5000, "each node needs a port of its own, and the engine 5000 and 5001"),
    ],
)
def test_ports_that_cannot_be(count: int, ports: str, engine_port: int, text: str) -> None:
    with pytest.raises(Failure) as caught:
        plan(count, ports, engine_port)
    assert text in caught.value.text


def test_the_command_line_of_a_node_is_one_that_the_server_takes() -> None:
    url = "postgres://postgres@127.0.0.1:12379/postgres?passfile=/some/where"
    command = plan(cluster_lease="400ms").serve_command(1, url, may_lose_commits=True)
    assert command[:4] == [sys.executable, "-m", "lessor", "serve"]
    options = parse(command[4:])
    assert options.name == "n2"
    assert options.data_dir == str(Path("some/where/n2").absolute())
    assert [each.url for each in options.listen_client_urls] == ["http://127.0.0.1:22379"]
    assert options.advertise_client_urls == ("http://127.0.0.1:22379",)
    assert (options.engine, options.engine_may_lose_commits, options.cluster_lease_s) == (url, True, 0.4)


def test_what_is_not_asked_for_is_not_in_the_command_line() -> None:
    command = plan().serve_command(0, "etcd://127.0.0.1:12379/lessor", may_lose_commits=False)
    assert "--cluster-lease" not in command
    assert not parse(command[4:]).engine_may_lose_commits


def test_a_command_line_is_quoted_where_the_shell_would_cut_it() -> None:
    assert shell_line(["a", "b c", "d?e=f"]) == "a 'b c' 'd?e=f'"


def test_a_port_that_is_taken_is_named_with_what_to_do() -> None:
    free = free_port()
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        assert answers(taken)
        with pytest.raises(Failure) as caught:
            check_ports(plan(2, f"{free},{taken}"), ())
        assert caught.value.text == (
            f"port {taken} is taken: end the program that listens there, or choose another with --ports {free},{taken}"
        )
        with pytest.raises(Failure) as caught:
            check_ports(plan(1, str(free)), (taken,))
        assert caught.value.text == (
            f"the engine's port {taken} is taken: end the program that listens there, "
            "or choose another with --engine-port NUMBER"
        )
    assert not answers(taken)
    check_ports(plan(2, f"{free},{taken}"), ())


def test_a_port_is_free_again_as_soon_as_its_server_is_gone() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client:
            server.accept()[0].close()  # this side ends first, and holds the port for a minute
            client.recv(1)
    check_ports(plan(1, str(port)), ())


def test_how_a_process_has_ended() -> None:
    assert how_ended(-9) == "was killed by signal 9"
    assert how_ended(1) == "ended with exit code 1"


def test_the_last_words_of_a_program(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert last_words(log, 0) == ""
    log.write_text("FATAL: of the run before\n")
    since = log.stat().st_size
    assert last_words(log, since) == ""
    with log.open("a") as file:
        file.write("12:00 LOG: starting\n12:01 FATAL:  port taken\nLOG: shut down\n\n")
    assert last_words(log, since) == "FATAL:  port taken"
    log.write_text("one\nlessor: no such engine\n")
    assert last_words(log, 0) == "lessor: no such engine"
