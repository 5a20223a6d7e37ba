# SPDX-License-Identifier: Apache-2.0
"""The loop of the load programs: many connections, one epoll, and what is written down of it.

Laws
- A latency ends when its reply is read, not when the loop last looked at the clock.
- `run_for` keeps the load up and counts the middle of it; `run_through` sends what there is to send, once.
- The loop says how busy it was itself. Above nine tenths of a core the figure measures the client, and says so.
"""

import select
import socket
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

DRAIN_S_MAX = 60.0
SILENCE_S_MAX = 120
BUSY_MAX = 0.9


class WrongReplyError(Exception):
    """A reply that no correct server gives, or a connection that ended early."""


class Wire(Protocol):
    """What a connection reads and writes: a socket, or TLS over one."""

    def fileno(self) -> int: ...
    def close(self) -> None: ...
    def sendall(self, data: bytes | memoryview, /) -> object: ...
    def recv(self, size: int, /) -> bytes: ...


class Client:
    """One connection of the load: `refill` sends what may be in flight, `read` takes what has come."""

    def __init__(self, wire: Wire, in_flight: int) -> None:
        self.socket = wire
        self.in_flight = in_flight
        self.sent = 0
        self.answered = 0
        self.sending = True  # False: whatever is answered, send nothing new
        self.latencies_s: list[float] = []

    def refill(self, now: float) -> None:
        raise NotImplementedError

    def read(self, now: float) -> None:
        raise NotImplementedError

    def close(self) -> None:
        self.socket.close()


@dataclass
class Report:
    """What a run found. `rate` counts replies per second between warm-up and end."""

    kind: str
    connections: int
    in_flight: int
    replies: int = 0
    seconds: float = 0.0
    rate: float = 0.0
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    max_ms: float = 0.0
    client_busy: float = 0.0  # share of one core that this process used while measuring
    client_could: float = 0.0  # the rate that this process could have made of a whole core
    client_bound: bool = False  # the figure is the client's, not the server's
    first_part_rate: float = 0.0  # of a run in parts: the rate of the first part, and of the last
    last_part_rate: float = 0.0
    per_second: list[int] = field(default_factory=list)

    def close(self, replies: int, seconds: float, cpu_s: float, latencies_s: list[float]) -> None:
        self.replies, self.seconds = replies, seconds
        self.rate = round(replies / seconds, 1)
        self.client_busy = round(cpu_s / seconds, 3)
        self.client_could = round(replies / max(cpu_s, 1e-3))
        self.client_bound = self.client_busy > BUSY_MAX
        if not latencies_s:
            raise WrongReplyError("no replies while measuring")
        self.p50_ms, self.p99_ms, self.max_ms = (
            round(1e3 * value, 3) for value in percentiles(latencies_s, (0.5, 0.99, 1.0))
        )


def percentiles(values: Sequence[float], shares: Sequence[float]) -> list[float]:
    """The value below which each share of them lies; the greatest for 1.0."""
    ordered = sorted(values)
    return [ordered[min(int(len(ordered) * share), len(ordered) - 1)] for share in shares]


def connect(address: tuple[str, int]) -> socket.socket:
    plain = socket.create_connection(address, timeout=10)
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    plain.setblocking(True)
    # A server that says nothing ends the run. The kernel looks at the clock; Python's timeout would cost a call a read.
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", SILENCE_S_MAX, 0))
    return plain


class Poll:
    """Reads from those of the connections that have something, for as long as it is turned."""

    def __init__(self, clients: Sequence[Client]) -> None:
        self.clients = clients
        self._epoll = select.epoll()
        self._by_fd = {client.socket.fileno(): client for client in clients}
        for fd in self._by_fd:
            self._epoll.register(fd, select.EPOLLIN)

    def turn(self, wait_s: float = 1.0) -> None:
        """Waits at most `wait_s`; reads once from each that can be read, and refills it."""
        by_fd = self._by_fd
        for fd, _ in self._epoll.poll(wait_s):
            client = by_fd[fd]
            now = time.perf_counter()
            client.read(now)
            client.refill(now)

    def start(self) -> None:
        now = time.perf_counter()
        for client in self.clients:
            client.refill(now)

    def answered(self) -> int:
        return sum(client.answered for client in self.clients)

    def latencies_s(self) -> list[float]:
        return [latency for client in self.clients for latency in client.latencies_s]

    def drain(self) -> None:
        """Sends nothing new and waits for the answers that are missing."""
        for client in self.clients:
            client.sending = False
        give_up = time.perf_counter() + DRAIN_S_MAX
        while missing := sum(client.sent - client.answered for client in self.clients):
            if time.perf_counter() > give_up:
                raise WrongReplyError(f"{missing} replies are missing {DRAIN_S_MAX:g} s after the last request")
            self.turn()


def run_for(clients: Sequence[Client], report: Report, warmup_s: float, seconds: float) -> None:
    """Keeps the load up for `warmup_s` and then for `seconds`, waits for the last replies, and fills the report."""
    poll = Poll(clients)
    poll.start()
    now = time.perf_counter()
    warm = now + warmup_s
    while now < warm:
        poll.turn()
        now = time.perf_counter()
    for client in clients:
        client.latencies_s.clear()
    begin, cpu_at_begin, at_begin = now, time.process_time(), poll.answered()
    end, tick, answered = begin + seconds, begin + 1.0, at_begin
    while now < end:
        poll.turn()
        now = time.perf_counter()
        if now >= tick:
            before, answered = answered, poll.answered()
            report.per_second.append(answered - before)
            tick = now + 1.0
    replies, cpu_s, latencies_s = poll.answered() - at_begin, time.process_time() - cpu_at_begin, poll.latencies_s()
    poll.drain()
    report.close(replies, now - begin, cpu_s, latencies_s)


def run_through(clients: Sequence[Client], report: Report | None = None, part: int = 0) -> None:
    """Sends each client's requests, once, and waits for all answers. Of a run in parts of `part` replies, the rates of
    the first and of the last part are reported.
    """
    poll = Poll(clients)
    at_begin, cpu_at_begin, begin = poll.answered(), time.process_time(), time.perf_counter()
    marks = [begin]
    next_mark = at_begin + part
    poll.start()
    quiet_since = begin
    before = at_begin
    while any(client.answered < client.sent for client in clients):
        poll.turn()
        answered, now = poll.answered(), time.perf_counter()
        if answered != before:
            before, quiet_since = answered, now
        elif now - quiet_since > DRAIN_S_MAX:
            raise WrongReplyError(f"no reply within {DRAIN_S_MAX:g} s, {answered} have come")
        if part and answered >= next_mark:
            marks.append(now)
            next_mark += part
    if report is None:
        return
    seconds = time.perf_counter() - begin
    report.close(before - at_begin, seconds, time.process_time() - cpu_at_begin, poll.latencies_s())
    if len(marks) > 2:
        report.first_part_rate = round(part / (marks[1] - marks[0]), 1)
        report.last_part_rate = round(part / (marks[-1] - marks[-2]), 1)
