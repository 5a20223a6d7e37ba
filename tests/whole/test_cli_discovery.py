# SPDX-License-Identifier: Apache-2.0
"""Servers found by SRV records: which are asked for, in which order they are tried, which are left out, what is said.

The name server is a socket of the test's own.
"""

import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dns.message
import dns.rcode
import dns.resolver
import dns.rrset
import pytest

from lessor.cli import main
from lessor.cli.discovery import NEEDS, endpoints_of
from lessor.cli.failure import Failure
from lessor.testing.server import InProcessServer
from tests.certificates import Authority

TLS, PLAIN = "_etcd-client-ssl._tcp.example.test.", "_etcd-client._tcp.example.test."


class Zone:
    """A name server: `records` by name, each "priority weight port target"; names that it has not do not exist."""

    def __init__(self) -> None:
        self.records: dict[str, list[str]] = {}
        self.silent = False
        self.asked: list[str] = []
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._serve)

    def _serve(self) -> None:
        while True:
            packet, peer = self._socket.recvfrom(4_096)
            if not packet:
                return
            query = dns.message.from_wire(packet)
            name = query.question[0].name.to_text()
            self.asked.append(name)
            if self.silent:
                continue
            reply = dns.message.make_response(query)
            if name in self.records:
                reply.answer.append(dns.rrset.from_text(name, 60, "IN", "SRV", *self.records[name]))
            else:
                reply.set_rcode(dns.rcode.NXDOMAIN)
            self._socket.sendto(reply.to_wire(), peer)

    @contextmanager
    def serving(self) -> Iterator["Zone"]:
        self._thread.start()
        try:
            yield self
        finally:
            self._socket.sendto(b"", ("127.0.0.1", self.port))  # ends the thread
            self._thread.join()
            self._socket.close()


@pytest.fixture
def zone(monkeypatch: pytest.MonkeyPatch) -> Iterator[Zone]:
    with Zone().serving() as zone:
        resolver = dns.resolver.Resolver(configure=False)
        resolver.nameservers, resolver.port = ["127.0.0.1"], zone.port
        monkeypatch.setattr(dns.resolver, "default_resolver", resolver)
        yield zone


def test_servers_with_tls_come_first_and_each_kind_by_priority(zone: Zone) -> None:
    zone.records = {
        PLAIN: ["9 0 2379 c.example.test.", "1 0 2379 d.example.test."],
        TLS: ["5 0 2380 b.example.test.", "0 0 2379 a.example.test."],
    }
    assert endpoints_of("example.test") == [
        *("https://a.example.test:2379", "https://b.example.test:2380"),
        *("http://d.example.test:2379", "http://c.example.test:2379"),
    ]
    assert zone.asked == [TLS, PLAIN]


def test_a_service_name_is_part_of_both_names(zone: Zone) -> None:
    zone.records = {"_etcd-client-blue._tcp.example.test.": ["0 0 1 a.test."]}
    assert endpoints_of("example.test", "blue") == ["http://a.test:1"]
    assert zone.asked == ["_etcd-client-ssl-blue._tcp.example.test.", "_etcd-client-blue._tcp.example.test."]


def test_servers_without_tls_are_left_out_on_demand(zone: Zone, capsys: pytest.CaptureFixture[str]) -> None:
    zone.records = {PLAIN: ["0 0 1 a.test."], TLS: ["0 0 2 b.test."]}
    assert endpoints_of("example.test", insecure=False) == ["https://b.test:2"]
    assert capsys.readouterr().err == 'ignoring discovered insecure endpoint "http://a.test:1"\n'
    del zone.records[TLS]
    with pytest.raises(Failure, match="name no server that speaks TLS, and --insecure-discovery is false"):
        endpoints_of("example.test", insecure=False)


def test_a_service_that_is_not_there(zone: Zone) -> None:
    with pytest.raises(Failure) as caught:
        endpoints_of("example.test")
    lookups = [f"lookup {name[:-1]}: no such host" for name in (TLS, PLAIN)]
    assert caught.value.text == f"dns lookup errors: {lookups[0]} and {lookups[1]}"
    zone.records = {PLAIN: ["0 0 0 ."]}
    with pytest.raises(Failure, match=r"the SRV records of example\.test name no server$"):
        endpoints_of("example.test")


def test_a_name_server_that_does_not_answer_is_waited_for_as_for_a_connection(
    zone: Zone, capsys: pytest.CaptureFixture[str]
) -> None:
    zone.silent = True
    assert main.run(["get", "a", "-d", "example.test", "--dial-timeout", "50ms"]) == 1
    assert capsys.readouterr().err.endswith(f"and lookup {PLAIN[:-1]}: no answer within 0.05 s\n")
    assert zone.asked == [TLS, PLAIN]  # it would be asked again after two seconds


def test_what_is_no_name(zone: Zone) -> None:
    with pytest.raises(Failure, match=r"lookup _etcd-client\._tcp\.a\.\.b: "):
        endpoints_of("a..b")


def test_the_library_may_be_missing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "dns.exception", None)
    assert main.run(["get", "a", "--discovery-srv", "example.test"]) == 1
    assert capsys.readouterr().err == f"Error: {NEEDS}\n"


@pytest.mark.slow
def test_commands_go_to_what_is_found_and_not_to_the_endpoints(
    zone: Zone, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ETCDCTL_ENDPOINTS", "127.0.0.1:1")
    with InProcessServer() as server:
        zone.records = {PLAIN: [f"0 0 {server.address.partition(':')[2]} localhost."]}
        assert main.run(["lease", "grant", "60", "--discovery-srv", "example.test"]) == 0
        assert len(zone.asked) == 2  # once for the whole command
        monkeypatch.setenv("ETCDCTL_DISCOVERY_SRV", "example.test")
        assert main.run(["put", "a", "b"]) == 0
        monkeypatch.setenv("ETCDCTL_DISCOVERY_SRV_NAME", "blue")
        assert main.run(["put", "a", "c"]) == 1
    out, err = capsys.readouterr()
    assert out.endswith("granted with TTL(60s)\nOK\n")
    assert err.startswith("Error: dns lookup errors: lookup _etcd-client-ssl-blue._tcp.example.test: ")


@pytest.mark.slow
def test_certificates_name_the_host_or_where_dns_is_not_believed_the_domain(
    zone: Zone, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    authority = Authority("ca")
    authority.write(tmp_path / "ca.pem")
    for names, insecure in ((("localhost",), "true"), (("example.test",), "false")):
        files = authority.issue(tmp_path, "server", hosts=names)
        server = InProcessServer(f"--cert-file={files.certificate}", f"--key-file={files.key}")
        server.flags.append(f"--listen-client-urls=https://{server.address}")
        zone.records = {TLS: [f"0 0 {server.address.partition(':')[2]} localhost."]}
        with server:
            line = ["put", "a", "b", "--cacert", str(tmp_path / "ca.pem"), "--discovery-srv", "example.test"]
            for said in ("true", "false"):
                assert (main.run([*line, f"--insecure-discovery={said}"]) == 0) == (said == insecure)
            assert capsys.readouterr().err.count("ertificate") >= 1
