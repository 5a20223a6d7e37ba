# SPDX-License-Identifier: Apache-2.0
"""Pings of an HTTP/2 connection, by the rules of grpc-go's servers: does the peer ping too often, is it still there?

Laws
- A peer may ping once per `min_time_s` while it has a stream, and once per PING_WITHOUT_STREAMS_S while it has none.
  Each ping that comes earlier is a strike; PING_STRIKES_MAX strikes are allowed. When we send data or headers, the
  strikes are cleared: a client measures its bandwidth with a ping for each piece of data that it gets.
- A peer that has sent nothing for `interval_s` is pinged. If it sends nothing for `timeout_s` after that, it is gone.
- This module has no clock and does no I/O. The owner passes `now_s` (seconds, never decreasing), and calls `next_step`
  again after the time that it returned.
"""

from typing import Final, NamedTuple

from lessor.base import limits
from lessor.wire.frames import PING_BYTES

PING_STRIKES_MAX: Final = limits.GRPC_PING_STRIKES_MAX
PING_WITHOUT_STREAMS_S: Final = limits.GRPC_PING_WITHOUT_STREAMS_S
PAYLOAD: Final = bytes(PING_BYTES)  # of our pings


class KeepaliveRules(NamedTuple):
    """The three times that an operator can set, in seconds."""

    min_time_s: float = limits.GRPC_KEEPALIVE_MIN_TIME_S
    interval_s: float = limits.GRPC_KEEPALIVE_INTERVAL_S
    timeout_s: float = limits.GRPC_KEEPALIVE_TIMEOUT_S


class Keepalive:
    """The pings of one connection."""

    __slots__ = ("_asked_s", "_pinged_s", "_rules", "_strikes")

    def __init__(self, rules: KeepaliveRules) -> None:
        self._rules = rules
        self._pinged_s: float | None = None  # when the peer's last ping came
        self._strikes = 0
        self._asked_s: float | None = None  # when we sent the ping that has no answer yet

    def one_too_many(self, now_s: float, sent_since: bool, has_streams: bool) -> bool:
        """Counts a ping of the peer; returns whether it is one too many.

        `sent_since`: whether we have sent data or headers since the ping before.
        """
        before_s, self._pinged_s = self._pinged_s, now_s
        if sent_since:
            self._strikes = 0
        elif before_s is not None:
            least_s = self._rules.min_time_s if has_streams else PING_WITHOUT_STREAMS_S
            self._strikes += now_s - before_s < least_s
        return self._strikes > PING_STRIKES_MAX

    def next_step(self, now_s: float, heard_s: float) -> tuple[bool, float]:
        """(Whether to ping the peer now, in how many seconds to call again); it was last heard at `heard_s`.

        0 seconds: the peer did not answer and is gone.
        """
        interval_s, timeout_s = self._rules.interval_s, self._rules.timeout_s
        if self._asked_s is not None and heard_s <= self._asked_s:
            return False, max(self._asked_s + timeout_s - now_s, 0.0)
        self._asked_s = None
        left_s = heard_s + interval_s - now_s
        if left_s > 0:
            return False, left_s
        self._asked_s = now_s
        return True, timeout_s
