# SPDX-License-Identifier: Apache-2.0
"""Ten thousand watchers, and how long an event takes to them. Every event is checked.

Four cases: each watcher on a connection of its own; on a stream of its own, of ten connections; all on ten streams,
each on its own key; and all on ten streams, on one key. What is told: memory per watcher, and the time from sending a
put to having its event (of one key: the events of all watchers, and how many of them came per second).
"""

import argparse
import sys
import time

from bench import crowds
from bench.rows import Goal, Row
from bench.thin_client import Calls, Connection, Crowd, WrongReplyError, percentiles_ms, raise_file_limit
from lessor.api.proto import rpc_pb2

WATCHERS = 10_000
WATCH = "/etcdserverpb.Watch/Watch"
PUT = "/etcdserverpb.KV/Put"
# Connections, streams of each, keys (0: one for each watcher), and puts at a time.
CASES: dict[str, tuple[int, int, int, int]] = {
    "connections": (0, 1, 0, 1),
    "streams": (10, 0, 0, 1),
    "few_streams": (10, 1, 0, 1),
    "one_key": (10, 1, 1, 1),
    "fanout_few_streams": (10, 1, 1, 8),
    "fanout_streams": (10, 0, 1, 8),
}

Event = tuple[bytes, bytes, int]  # key, value, mod_revision


class Watchers:
    """Watchers, and one connection more that puts. Watcher n watches key n, or the only one."""

    def __init__(self, address: tuple[str, int], watchers: int, connections: int, streams: int, keys: int) -> None:
        self.watchers = watchers
        self._each = watchers // (connections or watchers)  # watchers of a connection
        self._of_stream = self._each // (streams or self._each)
        self._keys = keys or watchers
        self._crowd = Crowd()
        self._created = 0
        self._parsed: dict[bytes, tuple[int, list[Event]]] = {}  # equal on many streams
        self._revision = [0] * watchers  # of the last event that each has seen
        self.sent_s: dict[bytes, float] = {}  # by value
        self.latencies_s: list[float] = []
        self.events = 0
        calls = Calls(WATCH)
        for number in range(watchers // self._each):
            connection = Connection(number, address, self._on_message)
            self._crowd.add(connection)
            for each in range(self._each):
                stream, place = divmod(each, self._of_stream)
                request = self._create_request(number * self._each + each)
                connection.send(calls.send(stream, request) if place else calls.open(stream, request))
                if each % 64 == 63:
                    self._crowd.turn(0)
            if number % 64 == 0:
                self._crowd.turn(0)
        self._crowd.until(lambda: self._created == watchers, lambda: f"{self._created} of {watchers} created")
        self._put_calls = Calls(PUT)
        self.puts_sent = self.puts_answered = 0
        self._writer = Connection(-1, address, self._on_put)
        self._crowd.add(self._writer)

    def _create_request(self, watcher: int) -> bytes:
        create = rpc_pb2.WatchCreateRequest(key=self.key_of(watcher))
        return rpc_pb2.WatchRequest(create_request=create).SerializeToString()

    def key_of(self, watcher: int) -> bytes:
        return b"watched/%06d" % (watcher % self._keys)

    def _on_put(self, _connection: Connection, _stream: int, _payload: bytes) -> None:
        self.puts_answered += 1

    def _on_message(self, connection: Connection, stream: int, payload: bytes) -> None:
        found = self._parsed.get(payload)
        if found is None:
            found = self._parse(payload)
        watch_id, events = found
        if watch_id >= self._of_stream:
            raise WrongReplyError(f"watch {watch_id} was not asked for on this stream")
        watcher = connection.number * self._each + stream * self._of_stream + watch_id
        now = time.perf_counter()
        for key, value, revision in events:
            if revision <= self._revision[watcher] or key != self.key_of(watcher):
                raise WrongReplyError(f"watcher {watcher} was told of {key!r} at {revision}")
            self._revision[watcher] = revision
            self.latencies_s.append(now - self.sent_s[value])
        self.events += len(events)

    def _parse(self, payload: bytes) -> tuple[int, list[Event]]:
        response = rpc_pb2.WatchResponse.FromString(payload)
        if response.canceled or response.compact_revision or response.fragment:
            raise WrongReplyError(f"a watch ended: {response}")
        if response.created:
            self._created += 1
            return response.watch_id, []  # not kept: equal ones are counted one by one
        events = [(e.kv.key, e.kv.value, e.kv.mod_revision) for e in response.events]
        if len(self._parsed) > 20_000:
            self._parsed.clear()
        found = self._parsed[payload] = (response.watch_id, events)
        return found

    def put(self) -> None:
        """Puts the next key, with a value of its own; does not wait."""
        number = self.puts_sent
        value = b"%032d" % number
        key = b"watched/%06d" % (number * 7919 % self._keys)
        self.sent_s[value] = time.perf_counter()
        request = rpc_pb2.PutRequest(key=key, value=value).SerializeToString()
        self._writer.send(self._put_calls.open(number, request, last=True))
        self.puts_sent += 1

    def put_for(self, seconds: float, under_way: int) -> float:
        """Keeps `under_way` puts going, each until all of its events are there; returns the seconds it took."""
        told_by_each = self.watchers // self._keys
        begin = now = time.perf_counter()
        first, events = self.puts_sent, self.events
        while now < begin + seconds:
            while self.puts_sent - first - (self.events - events) // told_by_each < under_way:
                self.put()
            now = self._crowd.turn(1.0)
        self._crowd.until(
            lambda: (
                self.puts_answered == self.puts_sent and self.events - events == (self.puts_sent - first) * told_by_each
            ),
            lambda: f"{self.events - events} events of {self.puts_sent - first} puts",
        )
        return time.perf_counter() - begin


def client(options: argparse.Namespace) -> None:
    raise_file_limit()
    connections, streams, keys, under_way = CASES[options.case]
    watchers = Watchers(("127.0.0.1", options.port), options.watchers, connections, streams, keys)
    watchers.put_for(1.0, under_way)
    crowds.say("ready")
    watchers.latencies_s.clear()
    events, busy_s = watchers.events, time.process_time()
    seconds = watchers.put_for(options.seconds, under_way)
    busy_s = time.process_time() - busy_s
    crowds.say(
        "done",
        events_per_s=round((watchers.events - events) / seconds),
        client_busy=round(busy_s / seconds, 3),
        **percentiles_ms(watchers.latencies_s),
    )
    sys.stdin.readline()


def watchers_row(case: str, text: str, watchers: int = WATCHERS, seconds: float = 8.0) -> Row:
    goals = (
        Goal("bytes_each", f"memory per watcher, {text}", "bytes", 1),
        Goal("p50_ms", f"put to event, {text}, p50", "ms"),
        Goal("p99_ms", f"put to event, {text}, p99", "ms"),
    )
    load = ("--case", case, "--watchers", watchers, "--seconds", seconds)
    return crowds.row(f"many_watchers_{case}", "many_watchers", watchers, goals, *load, rounds_max=1)


ROWS = (
    watchers_row("connections", "10,000 watchers, each on a connection"),
    watchers_row("streams", "10,000 watchers, each on a stream"),
    watchers_row("few_streams", "10,000 watchers on 10 streams"),
    watchers_row("one_key", "10,000 watchers of one key"),
)


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    parser.add_argument("--watchers", type=int, default=WATCHERS)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--case", choices=CASES, required=True)
    return parser


if __name__ == "__main__":
    sys.exit(crowds.main(ROWS, arguments(), client))
