# SPDX-License-Identifier: Apache-2.0
"""/metrics: the counters and figures of the state, in Prometheus' text format, under etcd's names where etcd has one.

Laws
- A name of etcd's is used only for a figure with the same meaning, so that dashboards for etcd are right. The figures
  of raft and of Go's runtime have no meaning here and are left out.
- Prometheus objects are made only for a request. The cost grows with the distinct (method, code) pairs and with the
  watch streams, not with keys, leases or watchers that are up to date.

A batch becomes durable by one commit with one fsync, so its duration has two names. etcd's dashboards look for
`etcd_disk_wal_fsync_duration_seconds` and for `etcd_disk_backend_commit_duration_seconds`.
"""

from collections import Counter
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector

from lessor.api.methods import BY_PATH, METHODS, Method
from lessor.base.errors import Code
from lessor.server.observe.health import CHECKS, alarm_name
from lessor.server.observe.histogram import Histogram
from lessor.server.observe.observed import Observed
from lessor.server.version import CLUSTER_VERSION, ETCD_VERSION
from lessor.state.machine import TTL_BITS_MAX

# The streams whose errors are counted, with the names that etcd gives them.
_STREAMS = {"/etcdserverpb.Lease/LeaseKeepAlive": "lease-keepalive", "/etcdserverpb.Watch/Watch": "watch"}


class Exposition:
    """The text of /metrics. Collects the figures with each call of `text`."""

    def __init__(self, observed: Observed) -> None:
        self._observed = observed
        self._pages_made = 0
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def text(self) -> bytes:
        self._pages_made += 1
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        yield from self._lease_metrics()
        yield from self._store_metrics()
        yield from self._watch_metrics()
        yield from self._disk_metrics()
        yield from self._server_metrics()
        yield from self._health_metrics()
        yield from self._call_metrics()

    def describe(self) -> Iterator[Metric]:
        """Nothing: no other collector has these names, so the registry need not collect to learn them."""
        yield from ()

    def _lease_metrics(self) -> Iterator[Metric]:
        metrics, machine = self._observed.metrics, self._observed.machine
        granted = machine.granted
        revoked = metrics.expired + machine.revoked
        yield _gauge("lessor_leases", "Leases that live now.", len(machine.leases))
        yield _counter("etcd_debugging_lease_granted", "Leases granted.", sum(granted))
        yield _counter("etcd_debugging_lease_revoked", "Leases ended, by revoke or expiry.", revoked)
        yield _counter("etcd_debugging_lease_renewed", "Keepalives answered.", metrics.renewed)
        yield _counter("etcd_debugging_server_lease_expired", "Leases ended by their deadline.", metrics.expired)
        buckets, total = [], 0
        for bits, count in enumerate(granted):
            total += count
            buckets.append((f"{1 << bits}" if bits <= TTL_BITS_MAX else "+Inf", float(total)))
        name = "etcd_debugging_lease_ttl_total"
        yield HistogramMetricFamily(name, "TTLs granted, in seconds.", buckets, machine.granted_ttl_s)
        text = "How long after its deadline a lease ended."
        yield _histogram("lessor_lease_expiry_lateness_seconds", text, metrics.lateness)

    def _store_metrics(self) -> Iterator[Metric]:
        metrics, machine, committer = self._observed.metrics, self._observed.machine, self._observed.committer
        store = machine.store
        yield _counter("etcd_mvcc_range", "Ranges carried out, alone or in a txn.", store.ranges)
        yield _counter("etcd_mvcc_put", "Puts carried out, alone or in a txn.", store.puts)
        yield _counter(
            "etcd_mvcc_delete", "Deletes carried out, and keys deleted by the end of a lease.", store.deletes
        )
        yield _counter("etcd_mvcc_txn", "Txns of more than one operation, ends of leases included.", machine.txns)
        yield _gauge("etcd_mvcc_db_total_size_in_bytes", "Size of the data on disk.", committer.size_bytes)
        yield _gauge("etcd_mvcc_db_total_size_in_use_in_bytes", "The part that holds data.", committer.in_use_bytes)
        reading = metrics.snapshots
        yield _gauge("etcd_mvcc_db_open_read_transactions", "Snapshots under way.", reading)
        yield _gauge("etcd_debugging_mvcc_keys_total", "Keys.", len(store))
        yield _gauge("etcd_debugging_mvcc_current_revision", "The newest revision.", machine.revision)
        yield _gauge("etcd_debugging_mvcc_compact_revision", "The compacted revision.", machine.compact_revision)
        yield _gauge("etcd_debugging_auth_revision", "Revision of users and roles.", machine.auth.revision)
        name = "etcd_debugging_mvcc_total_put_size_in_bytes"
        yield _gauge(name, "Bytes of the keys and values put since the start.", store.put_bytes)
        name = "etcd_debugging_mvcc_db_compaction_keys"
        yield _counter(name, "Versions of keys that compactions made superfluous.", committer.compacted_rows)

    def _watch_metrics(self) -> Iterator[Metric]:
        metrics, streams = self._observed.metrics, self._observed.watch_streams
        slow = pending = 0
        for stream in streams:
            watchers, revisions = stream.behind()
            slow += watchers
            pending += revisions
        yield _gauge("etcd_debugging_mvcc_watch_stream_total", "Watch streams.", len(streams))
        yield _gauge("etcd_debugging_mvcc_watcher_total", "Watchers.", metrics.watchers)
        yield _gauge("etcd_debugging_mvcc_slow_watcher_total", "Watchers that catch up from history.", slow)
        name = "etcd_debugging_mvcc_pending_events_total"
        yield _gauge(name, "Revisions that slow watchers have not been told of, added up.", pending)
        yield _counter("etcd_debugging_mvcc_events", "Events sent to watchers.", metrics.events)

    def _disk_metrics(self) -> Iterator[Metric]:
        committer, metrics = self._observed.committer, self._observed.metrics
        text = "How long batches took to become durable."
        yield _histogram("etcd_disk_backend_commit_duration_seconds", text, committer.commit_s)
        yield _histogram("etcd_disk_wal_fsync_duration_seconds", text, committer.commit_s)
        text = "How long defragmentations took."
        yield _histogram("etcd_disk_backend_defrag_duration_seconds", text, committer.defragment_s)
        yield _gauge("etcd_disk_defrag_inflight", "Whether the data is being defragmented.", committer.defragmenting)
        yield _histogram("etcd_disk_backend_snapshot_duration_seconds", "How long snapshots took.", metrics.snapshot_s)
        yield _gauge("lessor_disk_free_bytes", "Free space below the data directory.", metrics.disk_free_bytes)
        rows = self._observed.machine.journal.row_count
        yield _gauge("lessor_open_batch_rows", "Rows that wait for the next commit.", rows)

    def _server_metrics(self) -> Iterator[Metric]:
        observed, metrics = self._observed, self._observed.metrics
        member_id = f"{observed.machine.identity.member_id:x}"
        reaches_leader = metrics.reaches_leader
        has_leader = reaches_leader is None or reaches_leader()
        yield _gauge("etcd_server_has_leader", "Whether there is a leader.", has_leader)
        yield _gauge("etcd_server_is_leader", "Whether this member leads.", reaches_leader is None)
        if metrics.lag_s is not None:
            text = "For how long this server has been behind the one that leads."
            yield _gauge("lessor_follower_lag_seconds", text, metrics.lag_s())
        if metrics.answering is not None or metrics.lag_s is not None:
            yield _counter("lessor_passed_on_calls", "Calls passed on to the server that leads.", metrics.passed_on)
            yield _counter("lessor_claims", "How often this server has taken the lead.", metrics.claims)
            text = "How often this process was taken over by another server while it led."
            yield _counter("lessor_step_downs", text, metrics.step_downs)
        if metrics.answering is not None:
            text = "How often replies waited, because another server might have led."
            yield _counter("lessor_tenure_lapses", text, metrics.answering.lapses)
        yield _gauge("etcd_server_is_learner", "Whether this member is a learner.", 0)
        yield _counter("etcd_server_leader_changes_seen", "Changes of leader seen.", metrics.leader_changes)
        durable = observed.gate.durable
        yield _gauge("etcd_server_proposals_committed_total", "The newest batch handed to the disk.", durable)
        yield _gauge("etcd_server_proposals_applied_total", "The newest batch that is durable.", durable)
        yield _gauge(
            "etcd_server_proposals_pending", "Replies and events that wait for the disk.", observed.gate.waiting
        )
        yield _counter("etcd_server_proposals_failed", "Batches that could not be written.", observed.committer.failed)
        yield _gauge("etcd_server_quota_backend_bytes", "The quota.", observed.options.quota_backend_bytes)
        yield _labelled("etcd_server_version", "The etcd version served.", {"server_version": ETCD_VERSION})
        yield _labelled("etcd_cluster_version", "The cluster version served.", {"cluster_version": CLUSTER_VERSION})
        yield _labelled("etcd_server_id", "This member.", {"server_id": member_id})
        labels = ["server_id", "alarm_type"]
        alarms = GaugeMetricFamily("etcd_debugging_server_alarms", "Alarms that are up.", labels=labels)
        for member, kind in sorted(observed.machine.alarms):
            alarms.add_metric([f"{member:x}", alarm_name(kind)], 1)
        yield alarms
        yield _gauge("lessor_connections", "Client connections.", metrics.connections)
        # A page is given again for a moment (pages.py). Whoever compares two can tell by this whether they are one.
        yield _counter("lessor_metrics_pages_made", "Pages of metrics that were made, this one too.", self._pages_made)
        reached = CounterMetricFamily("lessor_limit_reached", "How often a limit was reached.", labels=["limit"])
        for shortage, count in metrics.shortages.counts.items():
            reached.add_metric([shortage.name], count)
        yield reached
        name = "etcd_network_client_grpc_received_bytes"
        yield _counter(name, "Bytes received from gRPC clients.", metrics.grpc_received_bytes)
        yield _counter("etcd_network_client_grpc_sent_bytes", "Bytes sent to gRPC clients.", metrics.grpc_sent_bytes)

    def _health_metrics(self) -> Iterator[Metric]:
        metrics = self._observed.metrics
        # They are counters, but etcd's names have no _total, and the library would add it to a counter's name.
        yield _gauge("etcd_server_health_success", "Health checks passed.", metrics.health_success)
        yield _gauge("etcd_server_health_failures", "Health checks failed.", metrics.health_failures)
        now = GaugeMetricFamily("etcd_server_healthcheck", "What each check says.", labels=["type", "name"])
        for page, checks in CHECKS.items():
            for name, check in checks.items():
                now.add_metric([page, name], check(self._observed) is None)
        yield now
        labels = ["type", "name", "status"]
        total = CounterMetricFamily("etcd_server_healthchecks", "Checks made.", labels=labels)
        for (page, name, passed), count in metrics.checks.items():
            total.add_metric([page, name, "success" if passed else "error"], count)
        yield total

    def _call_metrics(self) -> Iterator[Metric]:
        observed, metrics = self._observed, self._observed.metrics
        labels = ["grpc_type", "grpc_service", "grpc_method"]
        started = CounterMetricFamily("grpc_server_started", "Calls begun.", labels=labels)
        handled = CounterMetricFamily("grpc_server_handled", "Calls ended.", labels=[*labels, "grpc_code"])
        received = CounterMetricFamily("grpc_server_msg_received", "Messages received.", labels=labels)
        sent = CounterMetricFamily("grpc_server_msg_sent", "Messages sent.", labels=labels)
        ended: Counter[Method] = Counter()
        for (method, _), count in metrics.handled.items():
            ended[method] += count.n
        for method in METHODS:
            if not observed.serves(method):
                continue
            named = [_kind(method), method.service, method.name]
            started.add_metric(named, metrics.started[method].n)
            received.add_metric(named, metrics.started[method].n if method.unary else metrics.received[method])
            sent.add_metric(named, ended[method] if method.unary else metrics.sent[method])
        for (method, code), count in metrics.handled.items():
            handled.add_metric([_kind(method), method.service, method.name, _go_name(code)], count.n)
        yield from (started, handled, received, sent)
        labels = ["type", "client_api_version"]
        requests = CounterMetricFamily(
            "etcd_server_client_requests", "Calls by the version of the client.", labels=labels
        )
        for (unary, version), count in metrics.requests.items():
            requests.add_metric(["unary" if unary else "stream", version.decode()], count.n)
        yield requests
        name = "etcd_network_server_stream_failures"
        failures = CounterMetricFamily(name, "Streams that ended with an error.", labels=["API", "Type"])
        for path, stream in _STREAMS.items():
            fine = (Code.OK, Code.CANCELED)
            counts = [
                count.n for (of, code), count in metrics.handled.items() if of is BY_PATH[path] and code not in fine
            ]
            failures.add_metric([stream, "receive"], sum(counts))
        yield failures


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value)


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(name, text, value)


def _histogram(name: str, text: str, histogram: Histogram) -> Metric:
    return HistogramMetricFamily(name, text, histogram.buckets(), histogram.sum)


def _labelled(name: str, text: str, labels: dict[str, str]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=list(labels))
    family.add_metric(list(labels.values()), 1)
    return family


def _kind(method: Method) -> str:
    if method.unary:
        return "unary"
    return "bidi_stream" if method.client_streaming else "server_stream"


def _go_name(code: Code) -> str:
    """OK, InvalidArgument, ...: a code as grpc-go spells it, and so etcd's dashboards."""
    return "OK" if code is Code.OK else code.name.title().replace("_", "")
