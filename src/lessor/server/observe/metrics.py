# SPDX-License-Identifier: Apache-2.0
"""The server's counters. To count is to add to a plain integer, on the hot path too. exposition.py shows them."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from lessor.api.methods import Method
from lessor.base import limits
from lessor.base.errors import Code
from lessor.durable.engine import Answering
from lessor.server.observe.histogram import DISK_BUCKETS_S, Histogram
from lessor.server.observe.shortages import Shortages

_LATENESS_BUCKETS_S = (0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_RANGE_BUCKETS_S = tuple(0.0001 * 2**power for power in range(20))
_SNAPSHOT_BUCKETS_S = tuple(0.01 * 2**power for power in range(17))


K = TypeVar("K")


class Count:
    """A number. Code that adds to it often keeps the object, which saves the look-up by its key."""

    __slots__ = ("n",)

    def __init__(self) -> None:
        self.n = 0


class Counts(dict[K, Count], Generic[K]):
    """Counts by key. A count begins at 0 when it is first looked up."""

    def __missing__(self, key: K) -> Count:
        count = self[key] = Count()
        return count


class Durations:
    """How long requests of one kind took, by their outcome."""

    __slots__ = ("failed", "fine")

    def __init__(self, buckets_s: Sequence[float]) -> None:
        self.fine = Histogram(buckets_s)
        self.failed = Histogram(buckets_s)


# The methods whose duration is shown, under the names that etcd gives their requests.
_TIMED = {
    "/etcdserverpb.KV/Range": "Range",
    "/etcdserverpb.KV/Put": "Put",
    "/etcdserverpb.KV/DeleteRange": "DeleteRange",
    "/etcdserverpb.KV/Txn": "Txn",
    "/etcdserverpb.KV/Compact": "Compaction",
    "/etcdserverpb.Lease/LeaseGrant": "LeaseGrant",
    "/etcdserverpb.Lease/LeaseRevoke": "LeaseRevoke",
    "/etcdserverpb.Maintenance/Alarm": "Alarm",
    **{f"/etcdserverpb.Auth/{name}": name for name in ("Authenticate", "AuthEnable", "AuthDisable", "AuthStatus")},
    **{
        f"/etcdserverpb.Auth/{name}": f"Auth{name}"
        for name in (
            *("UserAdd", "UserDelete", "UserChangePassword", "UserGrantRole", "UserRevokeRole", "UserGet", "UserList"),
            *("RoleAdd", "RoleDelete", "RoleGrantPermission", "RoleRevokePermission", "RoleGet", "RoleList"),
        )
    },
}
_READONLY_TXN = "ReadonlyTxn"


class CallCounts:
    """Where the calls of one method by clients of one API version are counted. Kept, so that no call looks it up."""

    __slots__ = ("_metrics", "method", "ranges", "readonly", "requests", "started", "succeeded", "took")

    def __init__(self, metrics: "Metrics", method: Method, requests: Count) -> None:
        self.method = method
        self._metrics = metrics
        self.started = metrics.started[method]
        self.requests = requests
        self.succeeded = metrics.handled[method, Code.OK]
        name = _TIMED.get(method.path)
        self.took = metrics.durations[name] if name is not None else None
        self.readonly = metrics.durations[_READONLY_TXN] if name == "Txn" else None  # for a txn that only reads
        self.ranges = metrics.ranges if name == "Range" else None

    def begin(self) -> None:
        """A call has begun."""
        self.started.n += 1
        self.requests.n += 1

    def end(self, code: Code) -> None:
        """A call that began has ended."""
        self._metrics.handled[self.method, code].n += 1


class Metrics:
    """The counters. Add to them directly; those of calls through `calls`."""

    def __init__(self) -> None:
        self.started: Counts[Method] = Counts()
        self.handled: Counts[tuple[Method, Code]] = Counts()
        self.received: Counter[Method] = Counter()  # messages of streaming calls; each unary call has one
        self.sent: Counter[Method] = Counter()
        self.durations = {name: Durations(DISK_BUCKETS_S) for name in sorted((*_TIMED.values(), _READONLY_TXN))}
        self.ranges = Durations(_RANGE_BUCKETS_S)  # of Range alone: until the reply is made
        self.requests: Counts[tuple[bool, bytes]] = Counts()  # by whether they are unary, and the client's API version
        self._calls: dict[tuple[Method, bytes], CallCounts] = {}
        self.renewed = 0  # keepalive requests answered, those for missing leases included
        self.expired = 0  # leases ended by their deadline
        self.watchers = 0
        self.events = 0  # sent to watchers
        self.connections = 0
        self.grpc_received_bytes = 0
        self.grpc_sent_bytes = 0
        self.health_success = 0
        self.health_failures = 0
        self.checks: Counter[tuple[str, str, bool]] = Counter()  # of /livez and /readyz: page, check, outcome
        self.lateness = Histogram(_LATENESS_BUCKETS_S)
        self.snapshots = 0  # under way
        self.shortages = Shortages()
        self.disk_free_bytes = 0  # below the data directory; 0 until it was looked at
        self.snapshot_s = Histogram(_SNAPSHOT_BUCKETS_S)
        self.answering: Answering | None = None  # on a shared log
        self.reaches_leader: Callable[[], bool] | None = None  # while another server leads
        self.lag_s: Callable[[], float] | None = None  # for how long this server has been behind that one
        self.passed_on = 0  # calls that went to a server that leads, or waited for one
        self.claims = 0  # how often this server took the lead
        # The leader at the start is the first. main.py adds to it: a record names a new term, or this server leads.
        self.leader_changes = 1
        self.step_downs = 0  # how often this process was taken over while it led
        self._lapses = 0  # of the terms that it has handed over

    @property
    def tenure_lapses(self) -> int:
        """How often replies waited because another server might have led."""
        return self._lapses + (0 if self.answering is None else self.answering.lapses)

    def follow_on(self) -> None:
        """This server has handed the lead over."""
        self._lapses, self.answering = self.tenure_lapses, None

    def calls(self, method: Method, client_api_version: bytes) -> CallCounts:
        """The counts for calls of `method`. `client_api_version`: as the client names it, "unknown" without.

        Beyond CLIENT_VERSIONS_MAX different versions the rest count as "other": a peer may send anything.
        """
        label = (method.unary, client_api_version)
        if label not in self.requests and len(self.requests) >= limits.CLIENT_VERSIONS_MAX:
            client_api_version = b"other"
        counts = self._calls.get((method, client_api_version))
        if counts is None:
            counts = CallCounts(self, method, self.requests[method.unary, client_api_version])
            self._calls[method, client_api_version] = counts
        return counts

    def expiry(self, leases: int, lateness_s: float) -> None:
        """Counts `leases` that ended in one turn; the first of them ended so many seconds after its deadline."""
        self.expired += leases
        self.lateness.observe(lateness_s, leases)
