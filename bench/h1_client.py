# SPDX-License-Identifier: Apache-2.0
"""The load over the JSON gateway: HTTP/1.1 connections with one call in flight each, each reply checked.

Laws: a reply is read whole, by its Content-Length, before the next request leaves; it must have status 200 and say
what was asked for. Chunked replies are beyond it; neither server sends them for calls as small as these.
"""

import argparse
import base64
import json
from collections.abc import Callable, Sequence
from typing import Any

from bench import population
from bench.h2_calls import Address
from bench.load_loop import Client, Report, WrongReplyError, connect, run_for

READ_BYTES = 65_536
READ_KEYS = 1_000
GRANT_URL, RANGE_URL = "/v3/lease/grant", "/v3/kv/range"


class JsonCalls(Client):
    """POSTs the bodies in turn; `check` gets the number of the body in the list, and the reply."""

    def __init__(self, address: Address, url: str, bodies: Sequence[bytes], check: Callable[[int, Any], None]) -> None:
        super().__init__(connect(address), 1)
        self._requests = [
            b"POST %b HTTP/1.1\r\nHost: %b:%d\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
            % (url.encode(), address[0].encode(), address[1], len(body), body)
            for body in bodies
        ]
        self._check = check
        self._since = 0.0
        self._received = b""

    def refill(self, now: float) -> None:
        if self.sending and self.sent == self.answered:
            self._since = now
            self.socket.sendall(self._requests[self.sent % len(self._requests)])
            self.sent += 1

    def read(self, now: float) -> None:
        data = self.socket.recv(READ_BYTES)
        if not data:
            raise WrongReplyError("the server closed the connection")
        self._received += data
        head, found, body = self._received.partition(b"\r\n\r\n")
        if not found:
            return
        if not head.startswith(b"HTTP/1.1 200 "):
            raise WrongReplyError(f"unexpected reply {self._received!r}")
        _, named, rest = head.lower().partition(b"\r\ncontent-length:")
        if not named:
            raise WrongReplyError(f"no Content-Length in {head!r}")
        length = int(rest.partition(b"\r\n")[0])
        if len(body) < length:
            return
        if len(body) > length or self.sent == self.answered:
            raise WrongReplyError(f"more than was asked for: {self._received!r}")
        self._check(self.answered % len(self._requests), json.loads(body))
        self._received = b""
        self.answered += 1
        self.latencies_s.append(now - self._since)


def json_grants(options: argparse.Namespace, report: Report) -> None:
    ids: set[str] = set()

    def check(_: int, reply: Any) -> None:
        if reply["TTL"] != str(options.ttl_s) or reply["ID"] in ids:
            raise WrongReplyError(f"asked for a new lease with {options.ttl_s} s and got {reply}")
        ids.add(reply["ID"])

    bodies = [b'{"TTL":"%d"}' % options.ttl_s]
    address = options.host, options.port
    clients = [JsonCalls(address, GRANT_URL, bodies, check) for _ in range(options.connections)]
    run_for(clients, report, options.warmup, options.seconds)


def json_ranges(options: argparse.Namespace, report: Report) -> None:
    address = options.host, options.port
    ids = population.new_ids(READ_KEYS)
    population.populate(address, ids)
    keys = [base64.b64encode(population.key_of(lease_id)).decode() for lease_id in ids]
    value = base64.b64encode(population.VALUE).decode()

    def check(number: int, reply: Any) -> None:
        (pair,) = reply["kvs"]
        if (pair["key"], pair["value"], pair["lease"]) != (keys[number], value, str(ids[number])):
            raise WrongReplyError(f"asked for the key of lease {ids[number]} and got {reply}")

    bodies = [json.dumps({"key": key}).encode() for key in keys]
    clients = [JsonCalls(address, RANGE_URL, bodies, check) for _ in range(options.connections)]
    run_for(clients, report, options.warmup, options.seconds)
