# SPDX-License-Identifier: Apache-2.0
"""The calls in /metrics: how many, with which code, and how long they took.

Laws
- Each method that is served has its series with each code from the start, at 0, as go-grpc-prometheus has them: a rate
  over a series that begins with 1 misses the first failure.
- The lines of zeros are made once. What a page costs beyond joining them grows with the (method, code) pairs that have
  happened.
"""

from collections import Counter
from collections.abc import Iterator

from lessor.api.methods import BY_PATH, METHODS, Method
from lessor.base.errors import Code
from lessor.server.observe.families import Family, labels
from lessor.server.observe.observed import Observed

# The streams whose errors are counted, with the names that etcd gives them.
_STREAMS = {"/etcdserverpb.Lease/LeaseKeepAlive": "lease-keepalive", "/etcdserverpb.Watch/Watch": "watch"}


class CallFamilies:
    """The families of one server."""

    def __init__(self, observed: Observed) -> None:
        self._observed = observed
        self._methods = [(method, labels(_pairs(method))) for method in METHODS if observed.serves(method)]
        # grpc_server_handled_total: each line without its number, and the lines as they were shown last.
        self._heads: list[str] = []
        self._handled: list[str] = []
        self._places: dict[tuple[Method, Code], int] = {}
        for method, _ in self._methods:
            for code in Code:
                self._place(method, code)

    def _place(self, method: Method, code: Code) -> int:
        place = self._places[method, code] = len(self._heads)
        head = "grpc_server_handled_total" + labels([*_pairs(method), ("grpc_code", _go_name(code))])
        self._heads.append(head)
        self._handled.append(f"{head} 0")
        return place

    def lines(self) -> Iterator[list[str]]:
        metrics = self._observed.metrics
        ended: Counter[Method] = Counter()
        places, heads, handled = self._places, self._heads, self._handled
        for (method, code), count in metrics.handled.items():
            if count.n:
                ended[method] += count.n
                place = places.get((method, code))
                if place is None:  # a method that is not served
                    place = self._place(method, code)
                handled[place] = f"{heads[place]} {count.n}"
        started = Family("counter", "grpc_server_started_total", "Calls begun.")
        received = Family("counter", "grpc_server_msg_received_total", "Messages received.")
        sent = Family("counter", "grpc_server_msg_sent_total", "Messages sent.")
        for method, named in self._methods:
            begun = metrics.started[method].n
            started.add(named, begun)
            received.add(named, begun if method.unary else metrics.received[method])
            sent.add(named, ended[method] if method.unary else metrics.sent[method])
        yield started.lines
        yield Family("counter", "grpc_server_handled_total", "Calls ended.").lines
        yield handled
        yield received.lines
        yield sent.lines
        yield self._versions().lines
        yield self._failures().lines
        yield from self._durations()

    def _versions(self) -> Family:
        requests = Family("counter", "etcd_server_client_requests_total", "Calls by the version of the client.")
        for (unary, version), count in self._observed.metrics.requests.items():
            kind = "unary" if unary else "stream"
            requests.add(labels([("client_api_version", version.decode()), ("type", kind)]), count.n)
        return requests

    def _failures(self) -> Family:
        name = "etcd_network_server_stream_failures_total"
        failures = Family("counter", name, "Streams that ended with an error.")
        fine = (Code.OK, Code.CANCELED)
        handled = self._observed.metrics.handled
        for path, stream in _STREAMS.items():
            method = BY_PATH[path]
            counts = [count.n for (of, code), count in handled.items() if of is method and code not in fine]
            failures.add(labels([("API", stream), ("Type", "receive")]), sum(counts))
        return failures

    def _durations(self) -> Iterator[list[str]]:
        metrics = self._observed.metrics
        text = "How long requests took until they were answered, by etcd's names of them."
        took = Family("histogram", "etcd_server_request_duration_seconds", text)
        for kind, durations in metrics.durations.items():
            for outcome, histogram in (("false", durations.failed), ("true", durations.fine)):
                if histogram.count:  # as in etcd: the first request begins the series
                    took.add_histogram(labels([("success", outcome), ("type", kind)]), histogram)
        yield took.lines
        ranges = Family("histogram", "etcd_server_range_duration_seconds", "How long Range took to be carried out.")
        for outcome, histogram in (("false", metrics.ranges.failed), ("true", metrics.ranges.fine)):
            if histogram.count:
                ranges.add_histogram(labels([("success", outcome)]), histogram)
        yield ranges.lines


def _pairs(method: Method) -> list[tuple[str, str]]:
    return [("grpc_method", method.name), ("grpc_service", method.service), ("grpc_type", _kind(method))]


def _kind(method: Method) -> str:
    if method.unary:
        return "unary"
    return "bidi_stream" if method.client_streaming else "server_stream"


def _go_name(code: Code) -> str:
    """OK, InvalidArgument, ...: a code as grpc-go spells it, and so etcd's dashboards."""
    return "OK" if code is Code.OK else code.name.title().replace("_", "")
