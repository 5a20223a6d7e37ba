# SPDX-License-Identifier: Apache-2.0
"""What a program sees of its client's work: log, counters, interceptors."""

import asyncio
import contextvars
import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from lessor.client import Client, ConnectionLost, Counters, Outgoing, ServerError
from lessor.testing.server import InProcessServer

SPAN: contextvars.ContextVar[str] = contextvars.ContextVar("SPAN", default="none")


@pytest.fixture
def server() -> Iterator[InProcessServer]:
    with InProcessServer() as server:
        yield server


def test_counters_say_what_has_happened(server: InProcessServer) -> None:
    with server.client() as client:
        assert set(client.counters.as_dict().values()) == {0}
        client.put("a", "b")
        with pytest.raises(ServerError):
            client.revoke(7)
        server.drop_connections()
        client.get("a")
        counters = client.counters
        assert (counters.calls, counters.failed_calls) == (3, 1)
        assert counters.connections == 2
        server.stop()
        with pytest.raises(ConnectionLost):
            client.get("a")
        assert (counters.failed_calls, counters.failed_connections) == (2, 1)
        server.start()
        assert client.counters is counters
        assert "calls=4" in repr(counters)


def test_counters_of_users_leases_and_watches() -> None:
    with InProcessServer(root_password="root") as server, server.client() as client:
        with client.lease(2) as lease, client.events("a") as watch:
            server.drop_connections()
            client.get("a")  # a read is repeated; a write on a connection that breaks just then would be in doubt
            client.put("a", "b")
            assert watch.next(timeout_s=20).kv.value == b"b"
            assert client.counters.resumed_watches >= 1
            assert client.counters.logins == 1
            server.expire_lease(lease.id)
            assert lease.lost.wait(timeout_s=20)
        assert client.counters.lost_leases == 1
        assert client.counters.lost_connections >= 1
        with client.lease(1) as lease:
            while client.counters.renewals == 0:
                assert not lease.lost.wait(timeout_s=0.05)
    assert client.counters.lost_leases == 1  # those of a client that is closed are not lost to anybody's surprise


def test_the_log_tells_of_connections_and_lost_leases_and_of_no_data(
    server: InProcessServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "lessor.client")
    with server.client() as client:
        client.put("secret-key", "secret-value")
        with client.lease(2) as lease:
            server.expire_lease(lease.id)
            assert lease.lost.wait(timeout_s=20)
        server.stop()
        with pytest.raises(ConnectionLost):
            client.get("secret-key")
        server.start()
    lines = [f"{record.levelname} {record.getMessage()}" for record in caplog.records if record.name == "lessor.client"]
    assert f"INFO connected to {server.client_url}" in lines
    assert any(line.startswith("WARNING lease ") and "is lost" in line for line in lines)
    assert f"WARNING cannot connect to {server.client_url}: connection refused" in lines
    assert "secret" not in " ".join(lines)


def test_a_program_without_logging_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    handlers, root.handlers = root.handlers, []
    try:
        with Client("127.0.0.1:1") as client, pytest.raises(ConnectionLost):
            client.get("a")
    finally:
        root.handlers = handlers
    assert capfd.readouterr().err == ""


class Tracer:
    """An interceptor that writes down what it sees."""

    def __init__(self, name: str, seen: list[str]) -> None:
        self.name = name
        self.seen = seen

    @contextmanager
    def __call__(self, call: Outgoing) -> Iterator[None]:
        call.metadata.append(("traceparent", self.name))
        self.seen.append(f"{self.name} {call.method} {SPAN.get()}")
        try:
            yield
        except ServerError as error:
            self.seen.append(f"{self.name} {error.code.name}")
            raise
        self.seen.append(f"{self.name} {type(call.reply).__name__}")


def test_interceptors_stand_around_each_call_in_its_callers_context(server: InProcessServer) -> None:
    seen: list[str] = []
    with server.client(interceptors=[Tracer("outer", seen), Tracer("inner", seen)]) as client:
        SPAN.set("mine")
        client.put("a", "b")
        assert seen == [
            "outer /etcdserverpb.KV/Put mine",
            "inner /etcdserverpb.KV/Put mine",
            "inner PutResponse",
            "outer PutResponse",
        ]
        seen.clear()
        with pytest.raises(ServerError):
            client.revoke(7)
        assert seen[2:] == ["inner NOT_FOUND", "outer NOT_FOUND"]


def test_interceptors_of_the_asynchronous_client(server: InProcessServer) -> None:
    seen: list[str] = []

    async def main() -> None:
        async with server.async_client(interceptors=[Tracer("one", seen)]) as client:
            await client.maintenance.status()

    asyncio.run(main())
    assert [line.split()[1] for line in seen] == ["/etcdserverpb.Maintenance/Status", "StatusResponse"]


def test_an_interceptor_cannot_swallow_an_error(server: InProcessServer) -> None:
    @contextmanager
    def greedy(call: Outgoing) -> Iterator[None]:
        with suppress(ServerError):
            yield

    with server.client(interceptors=[greedy]) as client, pytest.raises(RuntimeError, match="swallowed"):
        client.revoke(7)


def test_what_an_interceptor_adds_to_the_metadata_is_sent() -> None:
    @contextmanager
    def impatient(call: Outgoing) -> Iterator[None]:
        call.metadata.append(("token", "nonsense"))
        yield

    guarded = InProcessServer(root_password="root")
    with guarded, Client(guarded.address, interceptors=[impatient]) as client, pytest.raises(ServerError) as caught:
        client.get("a")
    assert "token" in caught.value.message


def test_counters_can_be_read_by_name() -> None:
    assert list(Counters().as_dict()) == sorted(Counters().as_dict())
