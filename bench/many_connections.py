# SPDX-License-Identifier: Apache-2.0
"""Ten thousand connections, each with a lease of its own that it renews at a third of the TTL.

What is told of each server: memory per connection (resident, after all are connected and have renewed once, less that
of before), processor time, and how long a renewal takes. Every reply is checked for ID and TTL.
"""

import argparse
import sys
import time

from bench import crowds
from bench.rows import Goal
from bench.thin_client import Calls, Connection, Crowd, WrongReplyError, call, percentiles_ms, raise_file_limit
from lessor.api.proto import rpc_pb2

CONNECTIONS = 10_000
KEEPALIVE = "/etcdserverpb.Lease/LeaseKeepAlive"
GRANT = "/etcdserverpb.Lease/LeaseGrant"
FIRST_ID = 1 << 40


class Renewals:
    """One keepalive stream on each connection, renewals spread evenly over a third of the TTL."""

    def __init__(self, address: tuple[str, int], connections: int, ttl_s: int) -> None:
        self._ttl_s = ttl_s
        self._crowd = Crowd()
        self._sent_s = [0.0] * connections  # of the renewal under way, 0: none
        self.answered = 0
        self.latencies_s: list[float] = []
        for number in range(connections):
            self._crowd.add(Connection(number, address, self._on_reply))
            if number % 64 == 0:
                self._crowd.turn(0)
        # Only now, so that no lease ends while others still connect.
        ids = range(FIRST_ID, FIRST_ID + connections)
        granted = call(address, GRANT, [rpc_pb2.LeaseGrantRequest(ID=i, TTL=ttl_s).SerializeToString() for i in ids])
        if [rpc_pb2.LeaseGrantResponse.FromString(reply).ID for reply in granted] != list(ids):
            raise WrongReplyError("a grant with another ID")
        calls = Calls(KEEPALIVE)
        self._renewals: list[bytes] = []
        for connection, lease_id in zip(self._crowd.connections, ids, strict=True):
            request = rpc_pb2.LeaseKeepAliveRequest(ID=lease_id).SerializeToString()
            self._renewals.append(calls.send(0, request))
            self._sent_s[connection.number] = time.perf_counter()
            connection.send(calls.open(0, request))
            if connection.number % 64 == 0:
                self._crowd.turn(0)
        self._crowd.until(lambda: self.answered == connections, lambda: f"only {self.answered} replies came")

    def _on_reply(self, connection: Connection, _stream: int, payload: bytes) -> None:
        reply = rpc_pb2.LeaseKeepAliveResponse.FromString(payload)
        if (FIRST_ID + connection.number, self._ttl_s) != (reply.ID, reply.TTL):
            raise WrongReplyError(f"connection {connection.number} got {reply}")
        sent_s, self._sent_s[connection.number] = self._sent_s[connection.number], 0.0
        if not sent_s:
            raise WrongReplyError("a reply that nobody asked for")
        self.latencies_s.append(time.perf_counter() - sent_s)
        self.answered += 1

    def renew_for(self, seconds: float) -> None:
        """Renews each lease once per third of its TTL, one after the other."""
        connections = self._crowd.connections
        step_s = self._ttl_s / 3 / len(connections)
        begin = now = time.perf_counter()
        self.latencies_s.clear()
        sent = 0
        while now < begin + seconds:
            while begin + sent * step_s <= now:
                connection = connections[sent % len(connections)]
                if self._sent_s[connection.number]:
                    raise WrongReplyError("a renewal took a third of the TTL")
                self._sent_s[connection.number] = time.perf_counter()
                connection.send(self._renewals[connection.number])
                sent += 1
                now = time.perf_counter()
            now = self._crowd.turn(begin + sent * step_s - now)
        self._crowd.until(lambda: not any(self._sent_s), lambda: "replies are missing")


def client(options: argparse.Namespace) -> None:
    raise_file_limit()
    begin = time.perf_counter()
    renewals = Renewals(("127.0.0.1", options.port), options.connections, options.ttl_s)
    crowds.say("ready", connect_s=round(time.perf_counter() - begin, 2))
    busy = time.process_time()
    renewals.renew_for(options.seconds)
    busy = time.process_time() - busy
    crowds.say(
        "done",
        renewals=len(renewals.latencies_s),
        client_busy=round(busy / options.seconds, 3),
        **percentiles_ms(renewals.latencies_s),
    )
    sys.stdin.readline()


GOALS = (
    Goal("bytes_each", "memory per connection, of 10,000 with a keepalive stream each", "bytes", 1),
    Goal("p50_ms", "renewal over one of 10,000 connections, p50", "ms"),
    Goal("p99_ms", "renewal over one of 10,000 connections, p99", "ms"),
)
ROWS = (crowds.row("many_connections", "many_connections", CONNECTIONS, GOALS, rounds_max=1),)


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    parser.add_argument("--connections", type=int, default=CONNECTIONS)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--ttl-s", type=int, default=30)
    return parser


if __name__ == "__main__":
    sys.exit(crowds.main(ROWS, arguments(), client))
