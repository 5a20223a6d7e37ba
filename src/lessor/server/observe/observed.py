# SPDX-License-Identifier: Apache-2.0
"""The parts of a running server that the pages read, as protocols: the parts themselves are on floors above this one.

`Core` in loop/core.py fits `Observed` without naming it. A page that wants a new figure adds it here first. The pages
only read these parts, except that they count health checks in `metrics`.
"""

from collections.abc import Collection
from typing import Protocol

from lessor.api.methods import Method
from lessor.server.observe.histogram import Histogram
from lessor.server.observe.metrics import Metrics
from lessor.state.machine import StateMachine


class ObservedCommitter(Protocol):
    """The engine's thread. Its figures may be a batch old."""

    failed: bool
    defragmenting: bool
    compacted_rows: int
    commit_s: Histogram
    defragment_s: Histogram

    @property
    def size_bytes(self) -> int:
        """The data on disk."""
        ...

    @property
    def in_use_bytes(self) -> int:
        """The part of it that holds data."""
        ...

    @property
    def waiting_s(self) -> float:
        """How long the commit in hand has taken so far, in seconds; 0 when there is none."""
        ...


class ObservedGate(Protocol):
    """Where replies and events wait for the disk."""

    durable: int  # number of the newest batch that is known to be on disk

    @property
    def waiting(self) -> int:
        """How many payloads wait. Cost: the number of batches that something waits for, mostly two at most."""
        ...


class ObservedWatchStream(Protocol):
    def behind(self) -> tuple[int, int]:
        """How many of its watchers lag, and how many revisions they have not been sent, added up."""
        ...


class ObservedOptions(Protocol):
    @property
    def quota_backend_bytes(self) -> int: ...


class Observed(Protocol):
    """A running server. The attributes are read-only here, so that the server's may have their exact types."""

    @property
    def options(self) -> ObservedOptions: ...

    @property
    def machine(self) -> StateMachine: ...

    @property
    def metrics(self) -> Metrics: ...

    @property
    def committer(self) -> ObservedCommitter: ...

    @property
    def gate(self) -> ObservedGate: ...

    @property
    def watch_streams(self) -> Collection[ObservedWatchStream]: ...

    def serves(self, method: Method) -> bool:
        """Whether calls of this method are answered by a handler."""
        ...
