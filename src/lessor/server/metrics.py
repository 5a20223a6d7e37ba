# SPDX-License-Identifier: Apache-2.0
"""What the server counts, and how /metrics shows it, with etcd's names where etcd has one.

Counting is adding to a plain integer, on the hot path too; Prometheus objects are made only when somebody asks.
"""

from collections import Counter
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector

from lessor.api.methods import BY_PATH, Method
from lessor.base.errors import Code
from lessor.server.committer import Committer
from lessor.state.machine import StateMachine

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"
_LATENESS_BUCKETS_S = (0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Metrics:
    """The counters. Add to them directly."""

    def __init__(self) -> None:
        self.started: Counter[Method] = Counter()
        self.handled: Counter[tuple[Method, Code]] = Counter()
        self.renewed = 0  # keepalive requests answered, those for missing leases included
        self.expired = 0  # leases ended by their deadline
        self.watchers = 0
        self.connections = 0
        self.health_success = 0
        self.health_failures = 0
        self._lateness_counts = [0] * (len(_LATENESS_BUCKETS_S) + 1)
        self._lateness_sum_s = 0.0

    def expiry(self, leases: int, lateness_s: float) -> None:
        """`leases` ended in one turn, the first of them this long after its deadline."""
        self.expired += leases
        self._lateness_sum_s += lateness_s * leases
        for index, bound_s in enumerate(_LATENESS_BUCKETS_S):
            if lateness_s <= bound_s:
                self._lateness_counts[index] += leases
                return
        self._lateness_counts[-1] += leases

    def lateness(self) -> Metric:
        buckets, total = [], 0
        for bound, count in zip([*map(str, _LATENESS_BUCKETS_S), "+Inf"], self._lateness_counts, strict=True):
            total += count
            buckets.append((bound, float(total)))
        name = "lessor_lease_expiry_lateness_seconds"
        return HistogramMetricFamily(name, "How long after its deadline a lease ended.", buckets, self._lateness_sum_s)


class Exposition:
    """Turns the counters and the state's own figures into Prometheus' text."""

    def __init__(
        self,
        metrics: Metrics,
        machine: StateMachine,
        committer: Committer,
        version: str,
        watch_streams: Callable[[], int],
    ) -> None:
        self._metrics = metrics
        self._machine = machine
        self._committer = committer
        self._version = version
        self._watch_streams = watch_streams
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def text(self) -> bytes:
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        yield from self._lease_metrics()
        yield from self._store_metrics()
        yield from self._call_metrics()

    def _ok(self, path: str) -> int:
        return self._metrics.handled[BY_PATH[path], Code.OK]

    def _lease_metrics(self) -> Iterator[Metric]:
        metrics = self._metrics
        expired = metrics.expired
        revoked = expired + self._ok("/etcdserverpb.Lease/LeaseRevoke")
        yield GaugeMetricFamily("lessor_leases", "Leases that live now.", len(self._machine.leases))
        granted = self._ok("/etcdserverpb.Lease/LeaseGrant")
        yield CounterMetricFamily("etcd_debugging_lease_granted", "Leases granted.", granted)
        yield CounterMetricFamily("etcd_debugging_lease_revoked", "Leases ended, by revoke or expiry.", revoked)
        yield CounterMetricFamily("etcd_debugging_lease_renewed", "Keepalives answered.", metrics.renewed)
        yield CounterMetricFamily("etcd_debugging_server_lease_expired", "Leases ended by their deadline.", expired)
        yield metrics.lateness()

    def _store_metrics(self) -> Iterator[Metric]:
        machine, metrics = self._machine, self._metrics
        for name in ("range", "put", "delete", "txn"):
            rpc = {"range": "Range", "put": "Put", "delete": "DeleteRange", "txn": "Txn"}[name]
            count = self._ok(f"/etcdserverpb.KV/{rpc}")
            yield CounterMetricFamily(f"etcd_mvcc_{name}", f"{rpc} calls that succeeded.", count)
        gauges = {
            "etcd_mvcc_db_total_size_in_bytes": ("Size of the database file.", self._committer.size_bytes),
            "etcd_mvcc_db_total_size_in_use_in_bytes": ("The part that holds data.", self._committer.in_use_bytes),
            "etcd_debugging_mvcc_current_revision": ("The newest revision.", machine.revision),
            "etcd_debugging_mvcc_compact_revision": ("The compacted revision.", machine.compact_revision),
            "etcd_debugging_mvcc_watch_stream_total": ("Watch streams.", self._watch_streams()),
            "etcd_debugging_mvcc_watcher_total": ("Watchers.", metrics.watchers),
            "etcd_debugging_auth_revision": ("Revision of users and roles.", machine.auth.revision),
            "etcd_server_has_leader": ("Whether there is a leader.", 1),
            "etcd_server_is_leader": ("Whether this member leads.", 1),
            "lessor_connections": ("Client connections.", metrics.connections),
            "lessor_open_batch_rows": ("Rows that wait for the next commit.", machine.journal.row_count),
        }
        for gauge, (text, value) in gauges.items():
            yield GaugeMetricFamily(gauge, text, value)
        version = GaugeMetricFamily("etcd_server_version", "The etcd version served.", labels=["server_version"])
        version.add_metric([self._version], 1)
        yield version
        yield CounterMetricFamily("etcd_server_health_success", "Health checks passed.", metrics.health_success)
        yield CounterMetricFamily("etcd_server_health_failures", "Health checks failed.", metrics.health_failures)

    def _call_metrics(self) -> Iterator[Metric]:
        labels = ["grpc_type", "grpc_service", "grpc_method"]
        started = CounterMetricFamily("grpc_server_started", "Calls begun.", labels=labels)
        for method, count in self._metrics.started.items():
            started.add_metric([_kind(method), method.service, method.name], count)
        yield started
        handled = CounterMetricFamily("grpc_server_handled", "Calls ended.", labels=[*labels, "grpc_code"])
        for (method, code), count in self._metrics.handled.items():
            handled.add_metric([_kind(method), method.service, method.name, _go_name(code)], count)
        yield handled


def _kind(method: Method) -> str:
    if method.unary:
        return "unary"
    return "bidi_stream" if method.client_streaming else "server_stream"


def _go_name(code: Code) -> str:
    """OK, InvalidArgument, ...: how grpc-go, and so etcd's dashboards, spell a code."""
    return "OK" if code is Code.OK else code.name.title().replace("_", "")
