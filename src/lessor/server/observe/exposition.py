# SPDX-License-Identifier: Apache-2.0
"""/metrics: the counters and figures of the state, in Prometheus' text format, under etcd's names where etcd has one.

Laws
- A name of etcd's is used only for a figure with the same meaning, so that dashboards for etcd are right. The figures
  of raft and of Go's runtime have no meaning here and are left out.
- The text is made only for a request. The cost grows with the distinct (method, code) pairs and with the watch
  streams, not with keys, leases or watchers that are up to date.

A batch becomes durable by one commit with one fsync, so its duration has two names. etcd's dashboards look for
`etcd_disk_wal_fsync_duration_seconds` and for `etcd_disk_backend_commit_duration_seconds`.
"""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.process_collector import ProcessCollector

from lessor.api.version import CLUSTER_VERSION, ETCD_VERSION
from lessor.server.observe.call_families import CallFamilies
from lessor.server.observe.families import Family, labels
from lessor.server.observe.health import CHECKS, alarm_name
from lessor.server.observe.histogram import Histogram
from lessor.server.observe.observed import Observed
from lessor.state.machine import TTL_BITS_MAX

# What etcd shows of its process under two names.
_TWICE = {
    "process_open_fds": ("os_fd_used", "Open files and sockets."),
    "process_max_fds": ("os_fd_limit", "The limit of open files and sockets."),
}


class Exposition:
    """The text of /metrics. Collects the figures with each call of `text`."""

    def __init__(self, observed: Observed) -> None:
        self._observed = observed
        self._pages_made = 0
        self._calls: CallFamilies | None = None  # made with the first page, when the server knows its handlers
        self._process = ProcessCollector(registry=CollectorRegistry())

    def text(self) -> bytes:
        self._pages_made += 1
        lines: list[str] = []
        for family in self._families():
            lines += family.lines
        if self._calls is None:
            self._calls = CallFamilies(self._observed)
        for some in self._calls.lines():
            lines += some
        lines.append("")
        return "\n".join(lines).encode()

    def _families(self) -> Iterator[Family]:
        yield from self._lease_metrics()
        yield from self._store_metrics()
        yield from self._watch_metrics()
        yield from self._disk_metrics()
        yield from self._server_metrics()
        yield from self._health_metrics()
        yield from self._process_metrics()

    def _process_metrics(self) -> Iterator[Family]:
        """Nothing where there is no /proc."""
        for metric in self._process.collect():
            for sample in metric.samples:
                yield _single(metric.type, sample.name, metric.documentation, sample.value)
                if sample.name in _TWICE:
                    yield _gauge(*_TWICE[sample.name], sample.value)

    def _lease_metrics(self) -> Iterator[Family]:
        metrics, machine = self._observed.metrics, self._observed.machine
        granted = machine.granted
        revoked = metrics.expired + machine.revoked
        yield _gauge("lessor_leases", "Leases that live now.", len(machine.leases))
        yield _counter("etcd_debugging_lease_granted_total", "Leases granted.", sum(granted))
        yield _counter("etcd_debugging_lease_revoked_total", "Leases ended, by revoke or expiry.", revoked)
        yield _counter("etcd_debugging_lease_renewed_total", "Keepalives answered.", metrics.renewed)
        yield _counter("etcd_debugging_server_lease_expired_total", "Leases ended by their deadline.", metrics.expired)
        buckets: list[tuple[str, int]] = []
        total = 0
        for bits, count in enumerate(granted):
            total += count
            buckets.append((f"{1 << bits}" if bits <= TTL_BITS_MAX else "+Inf", total))
        granted_ttls = Family("histogram", "etcd_debugging_lease_ttl_total", "TTLs granted, in seconds.")
        granted_ttls.add_buckets("", buckets, machine.granted_ttl_s)
        yield granted_ttls
        text = "How long after its deadline a lease ended."
        yield _histogram("lessor_lease_expiry_lateness_seconds", text, metrics.lateness)

    def _store_metrics(self) -> Iterator[Family]:
        metrics, machine, committer = self._observed.metrics, self._observed.machine, self._observed.committer
        store = machine.store
        yield _counter("etcd_mvcc_range_total", "Ranges carried out, alone or in a txn.", store.ranges)
        yield _counter("etcd_mvcc_put_total", "Puts carried out, alone or in a txn.", store.puts)
        yield _counter(
            "etcd_mvcc_delete_total", "Deletes carried out, and keys deleted by the end of a lease.", store.deletes
        )
        yield _counter("etcd_mvcc_txn_total", "Txns of more than one operation, ends of leases included.", machine.txns)
        yield _gauge("etcd_mvcc_db_total_size_in_bytes", "Size of the data on disk.", committer.size_bytes)
        yield _gauge("etcd_mvcc_db_total_size_in_use_in_bytes", "The part that holds data.", committer.in_use_bytes)
        name = "etcd_debugging_mvcc_db_total_size_in_bytes"
        yield _gauge(name, "The same, by its name in etcd 3.3, which dashboards still ask for.", committer.size_bytes)
        reading = metrics.snapshots
        yield _gauge("etcd_mvcc_db_open_read_transactions", "Snapshots under way.", reading)
        yield _gauge("etcd_debugging_mvcc_keys_total", "Keys.", len(store))
        yield _gauge("etcd_debugging_mvcc_current_revision", "The newest revision.", machine.revision)
        yield _gauge("etcd_debugging_mvcc_compact_revision", "The compacted revision.", machine.compact_revision)
        yield _gauge("etcd_debugging_auth_revision", "Revision of users and roles.", machine.auth.revision)
        name = "etcd_debugging_mvcc_total_put_size_in_bytes"
        yield _gauge(name, "Bytes of the keys and values put since the start.", store.put_bytes)
        name = "etcd_debugging_mvcc_db_compaction_keys_total"
        yield _counter(name, "Versions of keys that compactions made superfluous.", committer.compacted_rows)

    def _watch_metrics(self) -> Iterator[Family]:
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
        yield _counter("etcd_debugging_mvcc_events_total", "Events sent to watchers.", metrics.events)

    def _disk_metrics(self) -> Iterator[Family]:
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

    def _server_metrics(self) -> Iterator[Family]:
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
            yield _counter(
                "lessor_passed_on_calls_total", "Calls passed on to the server that leads.", metrics.passed_on
            )
            yield _counter("lessor_claims_total", "How often this server has taken the lead.", metrics.claims)
            text = "How often this process was taken over by another server while it led."
            yield _counter("lessor_step_downs_total", text, metrics.step_downs)
            text = "How often replies waited, because another server might have led."
            yield _counter("lessor_tenure_lapses_total", text, metrics.tenure_lapses)
        yield _gauge("etcd_server_is_learner", "Whether this member is a learner.", 0)
        yield _counter("etcd_server_leader_changes_seen_total", "Changes of leader seen.", metrics.leader_changes)
        durable = observed.gate.durable
        yield _gauge("etcd_server_proposals_committed_total", "The newest batch handed to the disk.", durable)
        yield _gauge("etcd_server_proposals_applied_total", "The newest batch that is durable.", durable)
        yield _gauge(
            "etcd_server_proposals_pending", "Replies and events that wait for the disk.", observed.gate.waiting
        )
        yield _counter(
            "etcd_server_proposals_failed_total", "Batches that could not be written.", observed.committer.failed
        )
        yield _gauge("etcd_server_quota_backend_bytes", "The quota.", observed.options.quota_backend_bytes)
        yield _gauge("lessor_quota_counted_bytes", "What counts for the quota.", observed.machine.counted_bytes)
        yield _labelled("etcd_server_version", "The etcd version served.", "server_version", ETCD_VERSION)
        yield _labelled("etcd_cluster_version", "The cluster version served.", "cluster_version", CLUSTER_VERSION)
        yield _labelled("etcd_server_id", "This member.", "server_id", member_id)
        alarms = Family("gauge", "etcd_debugging_server_alarms", "Alarms that are up.")
        for member, kind in sorted(observed.machine.alarms):
            alarms.add(labels([("alarm_type", alarm_name(kind)), ("server_id", f"{member:x}")]), 1)
        yield alarms
        yield _gauge("lessor_connections", "Client connections.", metrics.connections)
        # A page is given again for a moment (pages.py). Whoever compares two can tell by this whether they are one.
        yield _counter(
            "lessor_metrics_pages_made_total", "Pages of metrics that were made, this one too.", self._pages_made
        )
        reached = Family("counter", "lessor_limit_reached_total", "How often a limit was reached.")
        for shortage, count in metrics.shortages.counts.items():
            reached.add(labels([("limit", shortage.name)]), count)
        yield reached
        name = "etcd_network_client_grpc_received_bytes_total"
        yield _counter(name, "Bytes received from gRPC clients.", metrics.grpc_received_bytes)
        yield _counter(
            "etcd_network_client_grpc_sent_bytes_total", "Bytes sent to gRPC clients.", metrics.grpc_sent_bytes
        )

    def _health_metrics(self) -> Iterator[Family]:
        metrics = self._observed.metrics
        yield _counter("etcd_server_health_success", "Health checks passed.", metrics.health_success)
        yield _counter("etcd_server_health_failures", "Health checks failed.", metrics.health_failures)
        now = Family("gauge", "etcd_server_healthcheck", "What each check says.")
        for page, checks in CHECKS.items():
            for name, check in checks.items():
                now.add(labels([("name", name), ("type", page)]), check(self._observed) is None)
        yield now
        total = Family("counter", "etcd_server_healthchecks_total", "Checks made.")
        for (page, name, passed), count in metrics.checks.items():
            status = "success" if passed else "error"
            total.add(labels([("name", name), ("status", status), ("type", page)]), count)
        yield total


def _gauge(name: str, text: str, value: float) -> Family:
    return _single("gauge", name, text, value)


def _counter(name: str, text: str, value: float) -> Family:
    return _single("counter", name, text, value)


def _single(kind: str, name: str, text: str, value: float) -> Family:
    family = Family(kind, name, text)
    family.add("", value)
    return family


def _histogram(name: str, text: str, histogram: Histogram) -> Family:
    family = Family("histogram", name, text)
    family.add_histogram("", histogram)
    return family


def _labelled(name: str, text: str, label: str, value: str) -> Family:
    family = Family("gauge", name, text)
    family.add(labels([(label, value)]), 1)
    return family
