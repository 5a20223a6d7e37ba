# SPDX-License-Identifier: Apache-2.0
"""etcd's flags that have no meaning here: for each the reason, and what to do. One error names all of them at once.

A flag without effect would be a promise that is not kept, so such a flag is refused. An environment variable of etcd's
is named in the log instead, as etcd does with a variable that it does not know: images and units set them for many
servers at once.
"""

from collections.abc import Iterable

_NO_PEERS = "one server without peers; leave it out"
_NO_RAFT = "there is no raft log; leave it out"
_SQLITE = "the data is one SQLite file that needs no such setting; leave it out"
_ONE_COPY = "there is no second copy to compare with; leave it out"
_ALWAYS = "always so; leave it out"
_LOG = "the log is JSON lines on standard error; redirect them, --log-level chooses among them"
_TRACING = "there is no tracing; leave it out, /metrics has the figures"

# The reason, and the flags to which it applies. A name that ends in `-` stands for all names that begin with it.
_REASONS: dict[str, tuple[str, ...]] = {
    _NO_PEERS: (
        *("listen-peer-urls", "initial-cluster", "initial-cluster-state", "initial-cluster-token", "discovery"),
        *("discovery-", "peer-", "max-learners", "strict-reconfig-check", "pre-vote", "force-new-cluster", "proxy"),
        *("proxy-", "raft-read-timeout", "raft-write-timeout", "initial-election-tick-advance"),
        *("experimental-peer-skip-client-san-verification", "downgrade-check-time"),
        *("experimental-downgrade-check-time", "client-cert-file", "client-key-file"),
    ),
    "one server without peers; `lessor member update` names URLs that tools may want": ("initial-advertise-peer-urls",),
    _NO_RAFT: (
        *("wal-dir", "snapshot-count", "max-snapshots", "max-wals", "snapshot-catchup-entries"),
        *("experimental-snapshot-catchup-entries", "v2-deprecation", "enable-v2", "experimental-enable-v2v3"),
    ),
    "there are no elections; --min-lease-ttl sets what etcd derives from it": (
        *("heartbeat-interval", "election-timeout"),
    ),
    _SQLITE: (
        *("backend-bbolt-freelist-type", "backend-batch-interval", "backend-batch-limit", "memory-mlock"),
        *("experimental-memory-mlock", "experimental-txn-mode-write-with-shared-buffer", "compaction-batch-limit"),
        *("experimental-compaction-batch-limit", "compaction-sleep-interval"),
        *("experimental-compaction-sleep-interval", "experimental-stop-grpc-service-on-defrag"),
    ),
    "run `lessor defrag` when it suits you": (
        *("bootstrap-defrag-threshold-megabytes", "experimental-bootstrap-defrag-threshold-megabytes"),
    ),
    "a reply means that its write is on disk; for tests put --data-dir into memory (/dev/shm)": ("unsafe-no-fsync",),
    _ONE_COPY: (
        *("corrupt-check-time", "experimental-corrupt-check-time", "experimental-initial-corrupt-check"),
        *("experimental-compact-hash-check-enabled", "experimental-compact-hash-check-time"),
        *("compact-hash-check-time",),
    ),
    "leases always keep their remaining time; leave it out": (
        *("experimental-enable-lease-checkpoint", "experimental-enable-lease-checkpoint-persist"),
    ),
    "what its gates are for is always so or has no place here; leave it out": ("feature-gates",),
    "one port serves gRPC and HTTP/1.1; add the URL to --listen-client-urls": ("listen-client-http-urls",),
    _ALWAYS: ("enable-grpc-gateway", "socket-reuse-address"),
    "two servers cannot share the data; leave it out": ("socket-reuse-port",),
    "pages of any origin may ask, and prove with a token who they are; narrow that in a proxy": ("cors",),
    "any host name is served; narrow that in a proxy, or use https://": ("host-whitelist",),
    "at most 10000 streams on a connection; leave it out": ("max-concurrent-streams",),
    "profiles are taken from outside, with py-spy; leave it out": ("enable-pprof",),
    "/metrics is always at the level `basic`; leave it out": ("metrics",),
    "/metrics tells how long commits take; leave it out": (
        *("warning-apply-duration", "experimental-warning-apply-duration", "warning-unary-request-duration"),
        *("experimental-warning-unary-request-duration",),
    ),
    _LOG: ("logger", "log-outputs", "log-format", "enable-log-rotation", "log-rotation-config-json", "debug"),
    _TRACING: (
        *("enable-distributed-tracing", "distributed-tracing-", "experimental-enable-distributed-tracing"),
        *("experimental-distributed-tracing-",),
    ),
    "options are flags or ETCD_ variables; write its lines as those": ("config-file",),
    "run `lessor version`": ("version",),
}


def reason(name: str) -> str | None:
    """Why this flag of etcd's is not taken. `name` is without dashes. None: it is not among them."""
    for why, names in _REASONS.items():
        if any(name == known or (known.endswith("-") and name.startswith(known)) for known in names):
            return why
    return None


def complaint(words: Iterable[str]) -> str | None:
    """One line about all flags of etcd's on a command line that are not taken; None when there are none."""
    found: dict[str, list[str]] = {}
    for word in words:
        name = word.partition("=")[0]
        why = reason(name.lstrip("-")) if name.startswith("-") else None
        if why is not None and name not in found.setdefault(why, []):
            found[why].append(name)
    return "; ".join(f"{', '.join(names)}: {why}" for why, names in found.items()) or None
