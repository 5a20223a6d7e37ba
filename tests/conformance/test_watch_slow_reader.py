# SPDX-License-Identifier: Apache-2.0
"""A watcher that stops reading for a while gets everything once it reads again, whatever it speaks."""

import json
import socket

import pytest

from lessor.api.proto import rpc_pb2 as rpc
from lessor.base import limits
from tests.conformance.grpc_peer import CALL_S_MAX
from tests.conformance.subject import Subject, end_of
from tests.conformance.test_gateway import b64

VALUE = bytes(700_000)
# Beyond what the kernel's buffers and the server's own bound take together.
WRITES = (limits.CONNECTION_BACKLOG_BYTES_MAX + 24_000_000) // len(VALUE)


@pytest.mark.slow
def test_a_watch_over_http_goes_on_when_it_is_read_again(subject: Subject, prefix: bytes) -> None:
    """Over HTTP/1.1 a peer that reads says nothing by it: the server has only its socket to go by."""
    host, _, port = subject.server.address.partition(":")
    body = json.dumps({"create_request": {"key": b64(prefix), "range_end": b64(end_of(prefix))}}).encode()
    head = f"POST /v3/watch HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with socket.create_connection((host, int(port)), timeout=CALL_S_MAX) as peer:
        peer.sendall(head + body)
        with peer.makefile("rb") as reader:
            while b'"created":true' not in reader.readline():
                pass
            revisions = [subject.do(rpc.PutRequest(key=prefix, value=VALUE)).header.revision for _ in range(WRITES)]
            seen: list[int] = []
            while len(seen) < WRITES:
                line = reader.readline()
                if line.startswith(b'{"result"'):
                    seen += [int(event["kv"]["mod_revision"]) for event in json.loads(line)["result"]["events"]]
    assert seen == revisions
