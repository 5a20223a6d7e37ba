# SPDX-License-Identifier: Apache-2.0
"""Calls at a fixed pace, whatever the server does: how long each takes while something else goes on.

Laws
- A call is due at its instant of the pace, and its latency counts from then: a server that stands still is not spared
  the calls that it kept from being sent.
- Each reply is checked. A server that is so slow that calls pile up shows it in the latencies.

Keepalives go over ten connections, grants and puts over one each. With --watchers, as many connections watch the keys
that are put, and each must see all of them, in order.

    python -m bench.paced --port 2379 --keepalives 500 --grants 100 --seconds 5

prints "ready", runs until --seconds have passed or its input is closed, and prints one JSON object: for each kind of
call how many there were and its percentiles; and how many keepalives the server left unanswered, ending their stream.
"""

import argparse
import gc
import json
import select
import sys
import time
from dataclasses import dataclass

from bench import population
from bench.h2_calls import Address, Keepalives, UnaryCalls, WatchCall
from bench.h2_client import Connection
from bench.load_loop import Client, Poll, WrongReplyError, percentiles
from lessor.api.proto import rpc_pb2

KEEPALIVE_CONNECTIONS = 10
LIST_CALLS = 4_096
PUT_KEYS = 1_000
UNAVAILABLE = "14"
PACED_PREFIX, PACED_END = b"paced/", b"paced0"


class Renewals(Keepalives):
    """One lease's keepalives, paced. A server that ends the stream as unavailable is asked again, as clients do: the
    calls that it left have failed, and took until then.
    """

    def __init__(self, address: Address, lease_id: int) -> None:
        super().__init__(address, 0, population.TTL_S, [lease_id], sample_every=1)
        self.failed = 0

    def on_head(self, stream: int, head: dict[str, str], end: bool) -> None:
        if not end or head.get("grpc-status") != UNAVAILABLE:
            super().on_head(stream, head, end)
            return
        now = time.perf_counter()
        self.latencies_s += [now - since for _, since in self.since]
        self.since.clear()
        self.failed += self.sent - self.answered
        self.answered = self.sent
        self.open()


@dataclass
class Pace:
    kind: str
    connection: Connection
    period_s: float
    due: float = 0.0

    def send(self, now: float) -> None:
        """Sends what is due. What the peer's window has no room for stays due, and is sent when it has."""
        while self.due <= now and self.connection.send(1, self.due):
            self.due += self.period_s

    def give_up(self, now: float) -> None:
        """What is still due took at least as long as it has been."""
        while self.due <= now:
            self.connection.latencies_s.append(now - self.due)
            self.due += self.period_s


def keepalive_paces(address: Address, per_s: float) -> list[Pace]:
    ids = population.new_ids(KEEPALIVE_CONNECTIONS)
    population.grant(address, ids)
    period_s = KEEPALIVE_CONNECTIONS / per_s
    return [Pace("keepalive", Renewals(address, lease_id), period_s) for lease_id in ids]


def grant_pace(address: Address, per_s: float) -> Pace:
    def check(_: int, data: bytes) -> None:
        granted_s = rpc_pb2.LeaseGrantResponse.FromString(data).TTL
        if granted_s != population.TTL_S:
            raise WrongReplyError(f"asked for {population.TTL_S} s and got {granted_s}")

    requests = [rpc_pb2.LeaseGrantRequest(TTL=population.TTL_S)] * LIST_CALLS
    return Pace("grant", UnaryCalls(address, 0, population.GRANT_PATH, requests, check, sample_every=1), 1 / per_s)


def put_pace(address: Address, per_s: float) -> Pace:
    revisions: set[int] = set()

    def check(_: int, data: bytes) -> None:
        revision = rpc_pb2.PutResponse.FromString(data).header.revision
        if revision in revisions:
            raise WrongReplyError(f"two puts have revision {revision}")
        revisions.add(revision)

    requests = [
        rpc_pb2.PutRequest(key=PACED_PREFIX + b"%08d" % (number % PUT_KEYS), value=population.VALUE)
        for number in range(LIST_CALLS)
    ]
    return Pace("put", UnaryCalls(address, 0, population.PUT_PATH, requests, check, sample_every=1), 1 / per_s)


class Watcher:
    """Sees each put once and in order."""

    def __init__(self, address: Address) -> None:
        self.events = 0
        self._newest = 0
        self.call = WatchCall(address, PACED_PREFIX, PACED_END, self._on_events)

    def _on_events(self, response: rpc_pb2.WatchResponse, _: float) -> None:
        for event in response.events:
            if event.kv.mod_revision <= self._newest:
                raise WrongReplyError(f"revision {event.kv.mod_revision} after {self._newest} on one watch")
            self._newest = event.kv.mod_revision
            self.events += 1


def run(paces: list[Pace], watchers: list[Watcher], seconds: float) -> None:
    clients: list[Client] = [pace.connection for pace in paces]
    poll = Poll([*clients, *(watcher.call for watcher in watchers)])
    closed = select.poll()
    closed.register(sys.stdin, select.POLLIN | select.POLLHUP)
    start = time.perf_counter()
    for number, pace in enumerate(paces):  # not all in one instant
        pace.due = start + pace.period_s * (number % KEEPALIVE_CONNECTIONS) / KEEPALIVE_CONNECTIONS
    next_look = start
    now = start
    while now < start + seconds:
        for pace in paces:
            pace.send(now)
        poll.turn(max(min(pace.due for pace in paces) - time.perf_counter(), 0.0005))
        now = time.perf_counter()
        if now >= next_look:
            if closed.poll(0):
                break
            next_look = now + 0.02
    for pace in paces:
        pace.give_up(now)
    poll.drain()
    puts = sum(pace.connection.answered for pace in paces if pace.kind == "put") - 1  # the first came before the watch
    give_up = time.perf_counter() + 60.0
    while any(watcher.events < puts for watcher in watchers):
        poll.turn(0.1)
        if time.perf_counter() > give_up:
            raise WrongReplyError(f"a watcher saw {min(it.events for it in watchers)} of {puts} puts")


def report(paces: list[Pace]) -> dict[str, float]:
    renewals = [pace.connection for pace in paces if isinstance(pace.connection, Renewals)]
    figures: dict[str, float] = {"keepalive_failed": sum(renewing.failed for renewing in renewals)}
    for kind in dict.fromkeys(pace.kind for pace in paces):
        latencies_s = [latency for pace in paces if pace.kind == kind for latency in pace.connection.latencies_s]
        figures[f"{kind}_calls"] = len(latencies_s)
        names = ("p50", "p99", "p999", "max")
        for name, value in zip(names, percentiles(latencies_s, (0.5, 0.99, 0.999, 1.0)), strict=True):
            figures[f"{kind}_{name}_ms"] = round(1e3 * value, 3)
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(description="Calls at a fixed pace; prints their latencies as JSON.")
    parser.add_argument("--port", type=int, default=2379)
    parser.add_argument("--keepalives", type=float, default=0, help="per second")
    parser.add_argument("--grants", type=float, default=0, help="per second")
    parser.add_argument("--puts", type=float, default=0, help="per second")
    parser.add_argument("--watchers", type=int, default=0, help="of the keys that are put")
    parser.add_argument("--seconds", type=float, default=3600.0)
    options = parser.parse_args()
    address = "127.0.0.1", options.port
    try:
        paces = keepalive_paces(address, options.keepalives) if options.keepalives else []
        paces += [grant_pace(address, options.grants)] if options.grants else []
        paces += [put_pace(address, options.puts)] if options.puts else []
        watchers = [Watcher(address) for _ in range(options.watchers)]
        gc.disable()
        print("ready", flush=True)
        run(paces, watchers, options.seconds)
        print(json.dumps(report(paces)), flush=True)
    except (WrongReplyError, OSError) as error:
        print(f"paced: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
