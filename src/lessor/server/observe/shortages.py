# SPDX-License-Identifier: Apache-2.0
"""The resources of the whole server that can run out: what the log says then, and how often it happened.

Laws
- A limit that is reached is counted each time, under `lessor_limit_reached_total` in /metrics, and logged at most once
  in SHORTAGE_LOG_S. The line has the limit's value and what an operator can do.
- It costs nothing until the limit is reached.

Each resource stands here once. The code that keeps the limit calls `reached` in the same place where it refuses or
waits. Bounds of one client (a window, a header list, a rate) are no business of the log: only that client notices them.
"""

import logging
from typing import Any, NamedTuple

from lessor.base import limits
from lessor.base.clock import Clock
from lessor.server.observe.logs import Sparing

log = logging.getLogger("lessor")


class Shortage(NamedTuple):
    """One resource. `name`: in the metric."""

    name: str
    text: str
    remedy: str
    limit: int = 0  # 0: the caller of `reached` names it, or nobody knows it
    level: int = logging.WARNING


OPEN_FILES = Shortage(
    "open_files",
    "too many open files: new connections are closed",
    "raise the limit of open files (ulimit -n, LimitNOFILE= of systemd), or let clients share connections",
)
UNFINISHED = Shortage(
    "unfinished_request_bytes",
    "requests sent by halves fill their share of the memory: the youngest of the largest sender is refused",
    "find the clients that begin requests and do not end them; each connection's share is bounded too",
    limits.UNFINISHED_BYTES_MAX,
)
PASSWORDS = Shortage(
    "passwords_waiting",
    "too many passwords wait to be checked: further logins are refused",
    "let clients keep their tokens (--auth-token-ttl), use client certificates, or lower --bcrypt-cost",
    limits.PASSWORDS_WAITING_MAX,
)
THREADS = Shortage(
    "threads",
    "no thread can be started: the call is refused",
    "raise the limit of tasks (ulimit -u, TasksMax= of systemd)",
)
SNAPSHOTS = Shortage(
    "snapshots",
    "too many snapshots at a time: further ones are refused",
    "wait for the ones under way, or end the clients that do not read them",
    limits.SNAPSHOTS_MAX,
)
LONG_REPLIES = Shortage(
    "long_reply_bytes",
    "long replies fill their share of the memory: the address with most loses one",
    "find the clients that ask for very many keys and do not read the reply; let them read in pages",
    limits.LONG_REPLIES_BYTES_MAX,
)
KEPT_KEYS = Shortage(
    "kept_key_bytes",
    "keys of watches and of waits fill their share of the memory: the largest keeper loses its largest key",
    "find the clients that watch or lock very many long keys; each connection's share is bounded too",
    limits.KEPT_KEYS_BYTES_MAX,
)
HANDSHAKES = Shortage(
    "tls_handshakes",
    "too many TLS handshakes at a time: the oldest is dropped",
    "find the peers that connect and say nothing (see the lines about rejected connections), keep them out",
    limits.TLS_HANDSHAKES_MAX,
)
BATCH_ROWS = Shortage(
    "open_batch_rows",
    "clients write more than the disk takes: connections that bring more wait",
    "use a faster disk, or write less at a time",
    limits.BATCH_ROWS_MAX,
)
DISK_SPACE = Shortage(
    "disk_space",
    "the disk is nearly full: the server stops when a write fails",
    "free some space, compact and defragment, or move --data-dir to a larger disk",
    limits.DISK_FREE_BYTES_LOW,
)
QUOTA = Shortage(
    "quota_backend_bytes",
    "database space exceeded",  # etcd's words
    "compact, then disarm the alarm; or raise --quota-backend-bytes",
    level=logging.ERROR,
)

ALL = (
    OPEN_FILES,
    UNFINISHED,
    PASSWORDS,
    THREADS,
    SNAPSHOTS,
    LONG_REPLIES,
    KEPT_KEYS,
    HANDSHAKES,
    BATCH_ROWS,
    DISK_SPACE,
    QUOTA,
)


class Shortages:
    """The counts of one server. Loop thread only."""

    __slots__ = ("_sparing", "counts")

    def __init__(self, clock: Clock | None = None) -> None:
        self.counts: dict[Shortage, int] = dict.fromkeys(ALL, 0)
        self._sparing = {each: Sparing(1, limits.SHORTAGE_LOG_S, clock) for each in ALL}

    def reached(self, shortage: Shortage, limit: int = 0, **fields: Any) -> None:
        """Counts one time that the limit was reached, and logs it if that is due. `fields`: of the line."""
        self.counts[shortage] += 1
        left_out = self._sparing[shortage].take()
        if left_out is not None:
            known = limit or shortage.limit
            given: dict[str, Any] = {**({"limit": known} if known else {}), "remedy": shortage.remedy, **fields}
            if left_out:
                given["times-since-last-line"] = left_out + 1
            log.log(shortage.level, shortage.text, extra=given, stacklevel=2)
