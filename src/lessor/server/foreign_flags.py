# SPDX-License-Identifier: Apache-2.0
"""etcd's flags that have no meaning here: which are taken without effect, which are refused, and why.

Laws
- A flag is taken if nothing that its operator counts on is missing without it: a start line for an etcd of one member
  works as it is. One line of the log names all such flags. With --strict-flags they are refused like the others.
- A flag is refused if it changes what the server promises, or wants what it does not do. One error names all of them,
  with the reason and what to do.
- An ETCD_ variable is judged like the flag that it stands for.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Final, NamedTuple

_TRUE, _FALSE = ("1", "t", "true"), ("0", "f", "false")


def _any(_value: str) -> bool:
    return True


def _is(*values: str) -> Callable[[str], bool]:
    return lambda value: value.lower() in values


def _names_one_member(value: str) -> bool:
    """Whether an --initial-cluster, NAME=URL with commas, has one name: a member may have several URLs."""
    return len({entry.partition("=")[0].strip() for entry in value.split(",")}) == 1


_off, _on, _empty = _is(*_FALSE), _is(*_TRUE), _is("")

_NO_PEERS = "there are no peers"
_NO_RAFT = "there is no raft log"
_SQLITE = "the data is one SQLite file that needs no such setting"
_ONE_COPY = "there is no second copy to compare with"
_SLOW = "/metrics tells how long commits take"
_ALWAYS = "always so"
_TRACING = "there is no tracing; leave it out, /metrics has the figures"
_ONE_SERVER = "this is one server; several on one log have --engine, see docs/cluster.md"

# By the reason: the values that do no harm, and the flags, switches (Go's booleans) apart from those that take a value.
# A name that ends in `-` stands for all names that begin with it.
_RULES: tuple[tuple[str, Callable[[str], bool], str, str], ...] = (
    (
        _NO_PEERS,
        _any,
        "peer-auto-tls peer-client-cert-auth peer-skip-client-san-verification strict-reconfig-check "
        "pre-vote initial-election-tick-advance experimental-peer-skip-client-san-verification",
        "listen-peer-urls initial-advertise-peer-urls initial-cluster-token initial-cluster-state peer- max-learners "
        "raft-read-timeout raft-write-timeout downgrade-check-time experimental-downgrade-check-time client-cert-file "
        "client-key-file discovery-fallback discovery-proxy discovery-dial-timeout discovery-request-timeout "
        "discovery-keepalive-time discovery-keepalive-timeout discovery-cert discovery-key discovery-cacert "
        "discovery-user discovery-password discovery-srv-name proxy-",
    ),
    (_NO_PEERS, _any, "discovery-insecure-transport discovery-insecure-skip-tls-verify", ""),
    (_ONE_SERVER, _names_one_member, "", "initial-cluster"),
    (_ONE_SERVER, _empty, "", "discovery discovery-srv discovery-token discovery-endpoints"),
    (_ONE_SERVER, _is("", "off"), "", "proxy"),
    ("restore a snapshot instead: `lessor snapshot restore`", _off, "force-new-cluster", ""),
    (
        _NO_RAFT,
        _any,
        "",
        "wal-dir snapshot-count max-snapshots max-wals snapshot-catchup-entries "
        "experimental-snapshot-catchup-entries v2-deprecation",
    ),
    ("there is no API of version 2", _off, "enable-v2", ""),
    ("there is no API of version 2", _empty, "", "experimental-enable-v2v3"),
    (
        "there are no elections; --min-lease-ttl sets what etcd derives from it",
        _any,
        "",
        "heartbeat-interval election-timeout",
    ),
    (
        _SQLITE,
        _any,
        "memory-mlock experimental-memory-mlock experimental-txn-mode-write-with-shared-buffer "
        "experimental-stop-grpc-service-on-defrag",
        "backend-bbolt-freelist-type backend-batch-interval backend-batch-limit "
        "experimental-backend-bbolt-freelist-type compaction-batch-limit experimental-compaction-batch-limit "
        "compaction-sleep-interval "
        "experimental-compaction-sleep-interval bootstrap-defrag-threshold-megabytes "
        "experimental-bootstrap-defrag-threshold-megabytes",
    ),
    (
        "a reply means that its write is on disk; for tests put --data-dir into memory (/dev/shm)",
        _off,
        "unsafe-no-fsync",
        "",
    ),
    (
        _ONE_COPY,
        _any,
        "experimental-initial-corrupt-check experimental-compact-hash-check-enabled",
        "corrupt-check-time experimental-corrupt-check-time compact-hash-check-time "
        "experimental-compact-hash-check-time",
    ),
    (
        "leases always keep their remaining time",
        _any,
        "experimental-enable-lease-checkpoint experimental-enable-lease-checkpoint-persist",
        "",
    ),
    ("the things that its gates are for are always so, or have no place here", _any, "", "feature-gates"),
    ("one port serves gRPC and HTTP/1.1; add the URL to --listen-client-urls", _empty, "", "listen-client-http-urls"),
    ("each port serves JSON too; leave it out", _on, "enable-grpc-gateway", ""),
    (_ALWAYS, _any, "socket-reuse-address socket-reuse-port", ""),
    (
        "pages of any origin may ask, and prove with a token who they are; narrow that in a proxy",
        _is("", "*"),
        "",
        "cors",
    ),
    ("any host name is served; narrow that in a proxy, or use https://", _is("", "*"), "", "host-whitelist"),
    ("at most 10000 streams on a connection", _any, "", "max-concurrent-streams"),
    ("profiles are taken from outside, with py-spy", _any, "enable-pprof", ""),
    ("/metrics is always at the level `basic`", _any, "", "metrics"),
    (
        _SLOW,
        _any,
        "",
        "warning-apply-duration experimental-warning-apply-duration warning-unary-request-duration "
        "experimental-warning-unary-request-duration",
    ),
    ("the log is that of zap: `--log-format` chooses its form", _is("zap"), "", "logger"),
    ("write --log-level=debug", _off, "debug", ""),
    (_TRACING, _off, "enable-distributed-tracing experimental-enable-distributed-tracing", ""),
    (_TRACING, _any, "", "distributed-tracing- experimental-distributed-tracing-"),
)


class _Flag(NamedTuple):
    why: str
    harmless: Callable[[str], bool]
    switch: bool


_FLAGS: Final = {
    name: _Flag(why, harmless, switch)
    for why, harmless, switches, others in _RULES
    for switch, names in ((True, switches), (False, others))
    for name in names.split()
}
_PREFIXES: Final = tuple(name for name in _FLAGS if name.endswith("-"))


def _find(name: str) -> _Flag | None:
    found = _FLAGS.get(name)
    if found is None:
        found = next((_FLAGS[prefix] for prefix in _PREFIXES if name.startswith(prefix)), None)
    return found


class Foreign:
    """The flags of etcd's in a start line that have no meaning here.

    idle: names of those that are taken without effect. refused: by the reason, names of those that are not taken.
    """

    def __init__(self) -> None:
        self.idle: list[str] = []
        self.refused: dict[str, list[str]] = {}

    def take(self, words: Iterable[str]) -> list[str]:
        """Returns the words of a command line without these flags and their values."""
        rest: list[str] = []
        left = iter(words)
        for word in left:
            name, equals, value = word.lstrip("-").partition("=")
            flag = _find(name) if word.startswith("-") else None
            if flag is None:
                rest.append(word)
                continue
            if not equals:
                value = "true" if flag.switch else next(left, "")
            self._judge(word.partition("=")[0], flag, value)
        return rest

    def take_variables(self, environment: Mapping[str, str]) -> None:
        """The same for ETCD_ variables. An empty one is as if it was not there, as in etcd."""
        for variable, value in sorted(environment.items()):
            flag = _find(_name_of(variable)) if variable.startswith("ETCD_") and value else None
            if flag is not None:
                self._judge(variable, flag, value)

    def _judge(self, shown: str, flag: _Flag, value: str) -> None:
        names = self.idle if flag.harmless(value) else self.refused.setdefault(flag.why, [])
        if shown not in names:
            names.append(shown)

    @property
    def names(self) -> list[str]:
        """Those that were given, whatever becomes of them."""
        return [*self.idle, *(name for names in self.refused.values() for name in names)]

    @property
    def complaint(self) -> str | None:
        """One line about all that are refused; None when there are none."""
        return "; ".join(f"{', '.join(names)}: {why}" for why, names in self.refused.items()) or None


def is_foreign(variable: str) -> bool:
    """Whether this ETCD_ variable stands for such a flag."""
    return _find(_name_of(variable)) is not None


def _name_of(variable: str) -> str:
    return variable.removeprefix("ETCD_").lower().replace("_", "-")
