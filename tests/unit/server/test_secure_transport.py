# SPDX-License-Identifier: Apache-2.0
"""TLS between socket and connection, without a socket: the client is OpenSSL on two buffers, time jumps."""

import asyncio
import contextlib
import logging
import ssl
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from lessor.base import limits
from lessor.server.options import TlsOptions
from lessor.server.tls.context import CredentialFiles
from lessor.server.tls.secure import Handshakes, SecureTransport
from tests.certificates import Authority, Files
from tests.unit.client.client_peer import run

CA = Authority("ca")


class Socket(asyncio.Transport):
    """The transport of an accepted socket, as far as it is used."""

    def __init__(self, address: str) -> None:
        super().__init__()
        self.address = address
        self.sent = b""
        self.reading = True
        self.ended = self.closed = False
        self.protocol: Any = None

    def write(self, data: Any) -> None:
        assert not self.closed
        assert not self.ended
        self.sent += bytes(data)

    def write_eof(self) -> None:
        self.ended = True

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def close(self) -> None:
        self._lose()

    def abort(self) -> None:
        self._lose()

    def _lose(self) -> None:
        if not self.closed:
            self.closed = True
            asyncio.get_running_loop().call_soon(self.protocol.connection_lost, None)

    def is_closing(self) -> bool:
        return self.closed

    def get_write_buffer_size(self) -> int:
        return 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None: ...

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return (self.address, 5) if name == "peername" else default


class Echo(asyncio.Protocol):
    """The connection behind TLS: remembers what it hears."""

    def __init__(self, name: str | None) -> None:
        self.name = name
        self.heard = b""
        self.pieces = 0
        self.events: list[str] = []
        self.keep_open = False
        self.transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.events.append("made")

    def data_received(self, data: bytes) -> None:
        assert data
        self.heard += data
        self.pieces += 1

    def eof_received(self) -> bool:
        self.events.append("eof")
        return self.keep_open

    def connection_lost(self, exc: Exception | None) -> None:
        self.events.append("lost")

    def pause_writing(self) -> None:
        self.events.append("pause")

    def resume_writing(self) -> None:
        self.events.append("resume")


class Client:
    """One client with OpenSSL, and the server's end of its connection."""

    def __init__(
        self, handshakes: Handshakes, connections: list[Echo], context: ssl.SSLContext, address: str = "10.0.0.1"
    ) -> None:
        self.connections = connections
        self.socket = Socket(address)
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_hostname="localhost")
        self.error: ssl.SSLError | None = None

        def accept(name: str | None) -> Echo:
            connections.append(Echo(name))
            return connections[-1]

        self.server = handshakes.secured(accept)()
        assert isinstance(self.server, SecureTransport)
        self.socket.protocol = self.server
        self.server.connection_made(self.socket)

    def shake(self) -> bool:
        """One step of the client's handshake; its bytes go to the server. True when it is over for the client."""
        self._take()
        try:
            self.tls.do_handshake()
            done = True
        except ssl.SSLWantReadError:
            done = False
        except ssl.SSLError as error:
            self.error = error
            done = True
        self.push()
        return done

    def push(self) -> None:
        data = self.outgoing.read()
        if data and not self.socket.closed:
            self.server.data_received(data)

    def send(self, data: bytes) -> None:
        self.tls.write(data)
        self.push()

    def receive(self) -> bytes:
        """Everything that the server has sent; b"" at the end of TLS. Raises ssl.SSLError for an alert."""
        self._take()
        received = b""
        while True:
            try:
                piece = self.tls.read(65536)
            except ssl.SSLWantReadError:
                return received
            if not piece:
                return received
            received += piece

    def _take(self) -> None:
        data, self.socket.sent = self.socket.sent, b""
        self.incoming.write(data)

    async def connect(self) -> None:
        for _ in range(10):
            done = self.shake()
            await settle()
            if done and not self.socket.sent:
                return


async def settle() -> None:
    """Lets everything run that is due."""
    for _ in range(20):
        await asyncio.sleep(0)


class Bench:
    """A server's handshakes, and clients for them."""

    def __init__(self, folder: Path, name_clients: bool = False, hosts: tuple[str, ...] = (), **tls: Any) -> None:
        self.folder = folder
        self.files = CA.issue(folder, "server")
        ca = str(CA.write(folder / "ca.pem"))
        if tls.pop("mutual", False):
            tls["trusted_ca_file"] = ca
        options = TlsOptions(str(self.files.certificate), str(self.files.key), **tls)
        self.handshakes = Handshakes(CredentialFiles(options), hosts, name_clients)
        self.connections: list[Echo] = []

    def client(
        self, own: Files | None = None, newest: ssl.TLSVersion | None = None, address: str = "10.0.0.1"
    ) -> Client:
        context = ssl.create_default_context(cafile=str(self.folder / "ca.pem"))
        if newest:
            context.maximum_version = newest
        if own:
            context.load_cert_chain(own.certificate, own.key)
        context.set_alpn_protocols(["h2"])
        return Client(self.handshakes, self.connections, context, address)


def go(main: Coroutine[Any, Any, Any]) -> None:
    run(main)


VERSIONS = pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"])


@VERSIONS
def test_bytes_go_both_ways(tmp_path: Path, version: ssl.TLSVersion) -> None:
    async def main() -> None:
        client = Bench(tmp_path).client(newest=version)
        await client.connect()
        assert client.tls.selected_alpn_protocol() == "h2"
        (echo,) = client.connections
        assert echo.events == ["made"]
        assert echo.name is None
        client.send(b"hello")
        assert echo.heard == b"hello"
        echo.transport.write(b"world")
        echo.transport.write(memoryview(b"!"))
        assert client.receive() == b"world!"
        large = bytes(range(256)) * 20_000  # five megabytes, so several calls of OpenSSL
        echo.transport.write(large)
        assert client.receive() == large
        client.send(large)
        assert echo.heard == b"hello" + large
        assert echo.transport.get_extra_info("ssl_object") is not None
        assert echo.transport.get_extra_info("peername") == ("10.0.0.1", 5)
        echo.transport.close()
        assert client.receive() == b""
        await settle()
        assert client.socket.closed
        assert echo.events == ["made", "lost"]

    go(main())


def test_what_comes_in_one_read_is_given_in_one_piece(tmp_path: Path) -> None:
    """Many small records, as a client's burst of calls is, must not become many events."""

    async def main() -> None:
        client = Bench(tmp_path).client()
        await client.connect()
        for number in range(100):
            client.tls.write(b"%03d" % number)
        client.push()
        assert client.connections[0].pieces == 1
        assert len(client.connections[0].heard) == 300

    go(main())


def test_bytes_may_come_one_by_one(tmp_path: Path) -> None:
    async def main() -> None:
        client = Bench(tmp_path).client()
        for _ in range(4):
            client._take()
            with contextlib.suppress(ssl.SSLWantReadError):
                client.tls.do_handshake()
            for byte in client.outgoing.read():
                client.server.data_received(bytes([byte]))
                await settle()
        client.tls.write(b"hello")
        for byte in client.outgoing.read():
            client.server.data_received(bytes([byte]))
        assert client.connections[0].heard == b"hello"

    go(main())


def test_a_request_right_behind_the_handshake_is_not_lost(tmp_path: Path) -> None:
    async def main() -> None:
        client = Bench(tmp_path).client()
        client.shake()
        await settle()
        client._take()
        client.tls.do_handshake()
        client.tls.write(b"at once")
        client.push()  # the end of the handshake and the request in one read
        await settle()
        assert client.connections[0].events == ["made"]
        assert client.connections[0].heard == b"at once"

    go(main())


def test_reading_stops_while_a_step_waits_for_its_turn(tmp_path: Path) -> None:
    async def main() -> None:
        client = Bench(tmp_path).client()
        client.shake()
        assert not client.socket.reading
        await settle()
        assert client.socket.reading

    go(main())


def test_one_step_of_one_handshake_per_turn(tmp_path: Path) -> None:
    """Between two signatures everybody else is served."""

    async def main() -> None:
        bench = Bench(tmp_path)
        clients = [bench.client() for _ in range(5)]
        for client in clients:
            client.shake()
        answered = []
        for _ in range(6):
            answered.append(sum(bool(client.socket.sent) for client in clients))
            await asyncio.sleep(0)
        assert answered == [0, 1, 2, 3, 4, 5]

    go(main())


def test_a_silent_client_is_dropped_in_time(tmp_path: Path) -> None:
    async def main() -> None:
        bench = Bench(tmp_path)
        silent, half, good = bench.client(), bench.client(), bench.client()
        half.shake()
        await good.connect()
        await asyncio.sleep(limits.TLS_HANDSHAKE_S_MAX * 0.99)
        assert not silent.socket.closed
        assert not half.socket.closed
        await asyncio.sleep(limits.TLS_HANDSHAKE_S_MAX * 0.02)
        assert silent.socket.closed
        assert half.socket.closed
        assert not good.socket.closed
        await asyncio.sleep(3600)
        assert not good.socket.closed
        assert len(bench.connections) == 1

    go(main())


def test_beyond_the_bound_the_oldest_handshake_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "TLS_HANDSHAKES_MAX", 3)

    async def main() -> None:
        bench = Bench(tmp_path)
        done = bench.client()
        await done.connect()
        slow = [bench.client() for _ in range(3)]
        assert not any(client.socket.closed for client in slow)
        late = bench.client()
        assert [client.socket.closed for client in slow] == [True, False, False]
        await late.connect()
        late.send(b"hello")
        assert bench.connections[-1].heard == b"hello"
        assert not done.socket.closed

    go(main())


def test_a_crowd_at_one_address_costs_another_neither_its_handshake_nor_its_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "TLS_HANDSHAKES_MAX", 8)

    async def main() -> None:
        bench = Bench(tmp_path)
        honest = bench.client(address="10.0.0.2")
        crowd = [bench.client() for _ in range(20)]  # the first of them are older than the bound allows
        for client in crowd:
            client.shake()
        honest.shake()
        assert not honest.socket.closed
        for _ in range(4):
            await asyncio.sleep(0)
        assert honest.socket.sent
        await honest.connect()
        honest.send(b"hello")
        assert bench.connections[-1].heard == b"hello"
        assert sum(not client.socket.closed for client in crowd) <= 7
        await asyncio.sleep(limits.TLS_HANDSHAKE_S_MAX + 1)
        assert not bench.handshakes._under_way
        assert not bench.handshakes._under_way_count

    go(main())


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", "http request"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(40), ""),
        (b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00", ""),
        (b"\x16\x03\x01\xff\xff" + bytes(100), ""),
        (bytes(range(256)) * 300, ""),
        (b"\xff" * 70_000, ""),
    ],
)
def test_what_is_no_handshake_ends_it(tmp_path: Path, caplog: pytest.LogCaptureFixture, data: bytes, said: str) -> None:
    async def main() -> None:
        bench = Bench(tmp_path)
        client = bench.client()
        client.server.data_received(data)
        await settle()
        if not client.socket.ended:  # it may still become one
            await asyncio.sleep(limits.TLS_HANDSHAKE_S_MAX + 1)
        await asyncio.sleep(limits.TLS_LINGER_S + 1)
        assert client.socket.closed
        assert bench.connections == []

    go(main())
    assert [record.getMessage() for record in caplog.records] == ["rejected connection on client endpoint"]
    assert said in caplog.records[0].__dict__["error"]
    assert caplog.records[0].__dict__["remote-addr"] == "10.0.0.1:5"


def test_an_old_version_is_refused_with_an_alert(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        bench = Bench(tmp_path, min_version=ssl.TLSVersion.TLSv1_3)
        client = bench.client(newest=ssl.TLSVersion.TLSv1_2)
        await client.connect()
        assert client.error is not None
        assert "alert protocol version" in str(client.error).lower()
        assert bench.connections == []

    go(main())
    assert caplog.records[0].__dict__["error"] == "unsupported protocol"


def own(bench: Bench, who: str) -> Files | None:
    """A client's certificate of each kind."""
    folder = bench.folder
    made: dict[str, Callable[[], Files | None]] = {
        "alice": lambda: CA.issue(folder, "alice"),
        "nobody": lambda: CA.issue(folder, "", file="nobody"),
        "none": lambda: None,
        "stranger": lambda: Authority("other").issue(folder, "stranger"),
        "expired": lambda: CA.issue(folder, "expired", days_left=-1),
        "revoked": lambda: CA.issue(folder, "revoked", serial=77),
        "server only": lambda: CA.issue(folder, "server-only", for_servers_only=True),
        "elsewhere": lambda: CA.issue(folder, "elsewhere", hosts=("elsewhere.example",)),
    }
    return made[who]()


@VERSIONS
@pytest.mark.parametrize(
    ("who", "alert", "said"),
    [
        ("none", "certificate required|handshake failure", "peer did not return a certificate"),
        ("stranger", "unknown ca", "certificate verify failed"),
        ("expired", "certificate expired", "certificate has expired"),
        ("server only", "unsupported certificate|bad certificate", "certificate verify failed"),
        ("revoked", "", "transport: certificate serial 4d revoked"),
        ("elsewhere", "", "client certificate authentication failed"),
    ],
)
def test_a_client_that_is_refused_is_told_and_the_log_says_why(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, version: ssl.TLSVersion, who: str, alert: str, said: str
) -> None:
    async def main() -> None:
        (tmp_path / "crl").write_bytes(CA.revoke([77]))
        bench = Bench(tmp_path, mutual=True, client_crl_file=str(tmp_path / "crl"), hosts=("localhost",))
        client = bench.client(own(bench, who), version)
        error: ssl.SSLError | None = None
        await client.connect()
        if client.error is None:
            client.tls.write(b"my first request")  # of a client of TLS 1.3, which knows nothing yet
            client.push()
            try:
                assert client.receive() == b""
            except ssl.SSLError as caught:
                error = caught
        reported = str(client.error or error or "").lower().replace("_", " ")
        assert any(words in reported for words in alert.split("|"))
        assert bench.connections == []
        assert client.socket.ended
        assert not client.socket.closed  # the alert must get through
        await asyncio.sleep(limits.TLS_LINGER_S + 0.1)
        assert client.socket.closed

    go(main())
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert said in caplog.records[0].__dict__["error"]


@VERSIONS
@pytest.mark.parametrize(
    ("who", "name_clients", "name"), [("alice", True, "alice"), ("alice", False, None), ("nobody", True, None)]
)
def test_a_verified_client_is_named_where_it_is_asked_for(
    tmp_path: Path, version: ssl.TLSVersion, who: str, name_clients: bool, name: str | None
) -> None:
    async def main() -> None:
        bench = Bench(tmp_path, name_clients=name_clients, mutual=True)
        client = bench.client(own(bench, who), version)
        await client.connect()
        assert [echo.name for echo in bench.connections] == [name]

    go(main())


def test_new_files_are_for_new_connections(tmp_path: Path) -> None:
    async def main() -> None:
        bench = Bench(tmp_path)
        before = bench.client()
        await before.connect()
        waiting = bench.client()  # connected, but its handshake has not begun
        CA.issue(tmp_path, "server", serial=4711)
        after = bench.client()
        await waiting.connect()
        await after.connect()
        serials = [client.tls.getpeercert()["serialNumber"] for client in (before, waiting, after)]  # type: ignore[index]
        assert serials[0] != f"{4711:X}"
        assert serials[1:] == [f"{4711:X}"] * 2
        before.send(b"still here")
        assert bench.connections[0].heard == b"still here"

    go(main())


def test_a_client_revoked_meanwhile_does_not_get_in_again(tmp_path: Path) -> None:
    """Not by resuming its session either, which OpenSSL does for TLS 1.2 without looking at the certificate."""

    async def main() -> None:
        crl = tmp_path / "crl"
        crl.write_bytes(CA.revoke([]))
        bench = Bench(tmp_path, mutual=True, client_crl_file=str(crl))
        context = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        files = own(bench, "revoked")
        assert files is not None
        context.load_cert_chain(files.certificate, files.key)
        first = Client(bench.handshakes, bench.connections, context)
        await first.connect()
        assert len(bench.connections) == 1
        crl.write_bytes(CA.revoke([77]))
        second = Client(bench.handshakes, bench.connections, context)
        second.tls = context.wrap_bio(
            second.incoming, second.outgoing, server_hostname="localhost", session=first.tls.session
        )
        await second.connect()
        assert len(bench.connections) == 1

    go(main())


def test_the_peers_end_is_passed_on_and_answered(tmp_path: Path) -> None:
    async def main() -> None:
        bench = Bench(tmp_path)
        client = bench.client()
        await client.connect()
        with pytest.raises(ssl.SSLWantReadError):
            client.tls.unwrap()
        client.push()
        assert bench.connections[0].events == ["made", "eof"]
        client._take()
        client.tls.unwrap()  # the server has ended TLS as well
        await settle()
        assert client.socket.closed
        assert bench.connections[0].events == ["made", "eof", "lost"]

    go(main())


def test_a_reply_under_way_still_goes_out_after_the_peers_end(tmp_path: Path) -> None:
    async def main() -> None:
        bench = Bench(tmp_path)
        client = bench.client()
        await client.connect()
        bench.connections[0].keep_open = True
        with pytest.raises(ssl.SSLWantReadError):
            client.tls.unwrap()
        client.push()
        assert not client.socket.closed
        bench.connections[0].transport.write(b"late")
        assert client.socket.sent
        bench.connections[0].transport.close()
        await settle()
        assert client.socket.closed

    go(main())


def test_a_socket_that_ends_without_tls_ending_is_lost(tmp_path: Path) -> None:
    async def main() -> None:
        bench = Bench(tmp_path)
        client = bench.client()
        await client.connect()
        assert not client.server.eof_received()
        client.server.connection_lost(None)
        assert bench.connections[0].events == ["made", "lost"]

    go(main())


def test_a_damaged_record_ends_the_connection_with_an_alert(tmp_path: Path) -> None:
    async def main() -> None:
        bench = Bench(tmp_path)
        client = bench.client()
        await client.connect()
        client.tls.write(b"hello")
        damaged = bytearray(client.outgoing.read())
        damaged[-1] ^= 1
        client.server.data_received(bytes(damaged))
        with pytest.raises(ssl.SSLError, match=r"(?i)alert"):
            client.receive()
        await settle()
        assert client.socket.closed
        assert bench.connections[0].heard == b""
        assert bench.connections[0].events == ["made", "lost"]
        bench.connections[0].transport.write(b"too late")  # does nothing

    go(main())


def test_the_sockets_back_pressure_is_passed_on(tmp_path: Path) -> None:
    async def main() -> None:
        bench = Bench(tmp_path)
        client = bench.client()
        await client.connect()
        client.server.pause_writing()
        client.server.resume_writing()
        assert bench.connections[0].events == ["made", "pause", "resume"]
        bench.connections[0].transport.pause_reading()
        assert not client.socket.reading

    go(main())


def test_closing_drops_what_is_under_way_and_nothing_else(tmp_path: Path) -> None:
    async def main() -> None:
        bench = Bench(tmp_path)
        done, under_way = bench.client(), bench.client()
        await done.connect()
        bench.handshakes.close()
        assert under_way.socket.closed
        assert not done.socket.closed

    go(main())


def test_a_flood_of_refusals_does_not_fill_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        bench = Bench(tmp_path)
        for _ in range(limits.TLS_REFUSALS_LOGGED_PER_S_MAX + 50):
            client = bench.client()
            client.server.data_received(b"GET / HTTP/1.1\r\n\r\n")
            await asyncio.sleep(0)
        await settle()
        await asyncio.sleep(2)
        bench.client().server.data_received(b"GET / HTTP/1.1\r\n\r\n")
        await settle()

    with caplog.at_level(logging.WARNING, "lessor"):
        go(main())
    assert len(caplog.records) == limits.TLS_REFUSALS_LOGGED_PER_S_MAX + 2
    assert caplog.records[-2].__dict__["connections"] == 50
