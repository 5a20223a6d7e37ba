# SPDX-License-Identifier: Apache-2.0
"""While auth is on, a caller who has shown no valid token is refused before a large request is read."""

import gzip
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest
from google.protobuf.message import Message

from lessor.api.proto import rpc_pb2 as rpc
from lessor.base import limits
from lessor.base.errors import Code
from lessor.server.services.tokens import Tokens
from lessor.testing.server import InProcessServer
from tests.conformance.raw_h2 import RawH2, framed
from tests.in_process import in_process

LARGE = limits.STRANGER_BYTES_MAX + 1
PUT, TXN, WATCH = "/etcdserverpb.KV/Put", "/etcdserverpb.KV/Txn", "/etcdserverpb.Watch/Watch"
LOGIN, HEALTH = "/etcdserverpb.Auth/Authenticate", "/grpc.health.v1.Health/Check"
USER_EMPTY = "etcdserver: user name is empty"
INVALID = "etcdserver: invalid auth token"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InProcessServer]:
    with in_process(Path(tmp_path_factory.mktemp("data"))) as running:
        auth = running.server.core.auth

        def begin() -> None:
            auth.add_user("root", b"", no_password=True)
            auth.grant_role("root", "root")
            auth.enable()

        running.call(begin)
        yield running


@pytest.fixture
def token(server: InProcessServer) -> str:
    tokens = cast(Tokens, server.server.core.tokens)
    return server.call(lambda: tokens.issue("root", server.server.core.auth.revision))


def put(size: int) -> Message:
    return rpc.PutRequest(key=b"k", value=bytes(size))


def half(size: int) -> bytes:
    """The beginning of a message, all but its last bytes."""
    return framed(put(size + 9_000))[:size]


def status(server: InProcessServer, path: str, body: bytes, end: bool, **headers: str) -> tuple[int, str]:
    with RawH2(server.address) as connection:
        stream = connection.open(path, body, end=end, **headers)
        return connection.outcomes([stream])[stream].status


@pytest.mark.parametrize("path", [PUT, WATCH])
@pytest.mark.parametrize("whole", [True, False])
def test_over_grpc_in_whole_or_by_halves(server: InProcessServer, path: str, whole: bool) -> None:
    body = framed(put(LARGE)) if whole else half(LARGE)
    assert status(server, path, body, whole)[1] == USER_EMPTY
    assert status(server, path, body, whole, token="nobodys") == (Code.UNAUTHENTICATED, INVALID)


@pytest.mark.parametrize("path", [PUT, WATCH])
def test_a_large_message_whose_last_part_is_small(server: InProcessServer, path: str) -> None:
    body = framed(put(LARGE))
    with RawH2(server.address) as connection:
        stream = connection.open(path, body[: limits.STRANGER_BYTES_MAX], end=False)
        connection.call(HEALTH, framed(b""))  # by now the first part was read, and the call lives
        connection.send(0, 1, stream, body[limits.STRANGER_BYTES_MAX :])
        assert connection.outcomes([stream])[stream].status[1] == USER_EMPTY


@pytest.mark.parametrize("path", [PUT, WATCH])
def test_a_message_that_is_large_when_it_is_unpacked(server: InProcessServer, path: str) -> None:
    """Malformed it is, but nobody looks."""
    body = framed(gzip.compress(b"\xff" * LARGE), flag=1)
    assert len(body) < 1_000
    assert status(server, path, body, True, **{"grpc-encoding": "gzip"})[1] == USER_EMPTY


def test_many_small_messages_on_one_stream_are_not_one_large(server: InProcessServer) -> None:
    cancel = framed(rpc.WatchRequest(cancel_request=rpc.WatchCancelRequest(watch_id=7)))
    body = cancel * (limits.STRANGER_BYTES_MAX // len(cancel) + 1)
    assert len(body) > limits.STRANGER_BYTES_MAX
    malformed = framed(b"\xff")  # ends the call, which would go on otherwise
    assert status(server, WATCH, body + malformed, True)[0] == Code.INTERNAL


@pytest.mark.parametrize("path", [LOGIN, HEALTH])
def test_calls_that_need_no_token_are_bounded_by_their_size_alone(server: InProcessServer, path: str) -> None:
    code, text = status(server, path, half(LARGE), False)
    assert code == Code.RESOURCE_EXHAUSTED
    assert f"vs. {limits.STRANGER_BYTES_MAX}" in text
    small = framed(rpc.AuthenticateRequest(name="n" * 9_000, password="p"))
    assert status(server, path, small, True)[0] != Code.RESOURCE_EXHAUSTED


def test_small_requests_and_those_with_a_token_are_read(server: InProcessServer, token: str) -> None:
    assert status(server, PUT, framed(rpc.PutRequest(value=bytes(9_000))), True)[1] == "etcdserver: key is not provided"
    assert status(server, PUT, framed(put(LARGE)), True, token=token)[0] == Code.OK
    with RawH2(server.address) as connection:
        stream = connection.open(PUT, half(LARGE), end=False, token=token)
        connection.call(HEALTH, framed(b""))  # by now the half was read, and the call lives
        connection.send(0, 1, stream, framed(put(LARGE + 9_000))[LARGE:])
        assert connection.outcomes([stream])[stream].status[0] == Code.OK


def answer(server: InProcessServer, path: str, body: bytes, length: int, *headers: str) -> str:
    """The first line of the reply and its body. `length`: as the head says it, of which `body` may be a part."""
    host, _, port = server.address.partition(":")
    head = "".join(
        line + "\r\n" for line in (f"POST {path} HTTP/1.1", "Host: x", f"Content-Length: {length}", *headers)
    )
    with socket.create_connection((host, int(port)), 10) as one:
        one.sendall(head.encode() + b"\r\n" + body)
        got = b""
        while b"}" not in got:
            more = one.recv(4_096)
            assert more
            got += more
    return got.decode()


@pytest.mark.parametrize("route", ["/v3/kv/range", "/v3/kv/put", "/v3/watch", "/v3/lease/keepalive"])
@pytest.mark.parametrize("body", [b'{"x":["' + b'","' * LARGE, b"{}" * LARGE, b"\xff" * LARGE])
def test_over_json_before_the_body_is_there_or_decoded(server: InProcessServer, route: str, body: bytes) -> None:
    for length in (len(body), 10 * len(body)):
        assert USER_EMPTY in answer(server, route, body, length)
        assert INVALID in answer(server, route, body, length, "Authorization: nobodys")


def test_a_small_body_is_answered_as_by_etcd_its_faults_first(server: InProcessServer, token: str) -> None:
    for body, text in ((b'{"x":!}', "looking for beginning of value"), (b"{}", "key is not provided")):
        assert text in answer(server, "/v3/kv/range", body, len(body))
    assert USER_EMPTY in answer(server, "/v3/kv/range", b'{"key":"aw=="}', 14)
    large = b'{"x":"' + b"y" * LARGE + b'"!'
    assert "after object key:value pair" in answer(server, "/v3/kv/range", large, len(large), f"Authorization: {token}")


def test_large_logins_over_json(server: InProcessServer) -> None:
    assert " 429 " in answer(server, "/v3/auth/authenticate", b'{"name":"' + b"n" * LARGE, 2 * LARGE)


def test_while_auth_is_off_nobody_is_a_stranger(tmp_path: Path) -> None:
    with in_process(tmp_path / "data") as running:
        assert status(running, PUT, framed(put(LARGE)), True)[0] == Code.OK
        body = b'{"x":"' + b"y" * LARGE + b'"}'
        assert "key is not provided" in answer(running, "/v3/kv/range", body, len(body))
