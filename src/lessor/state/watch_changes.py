# SPDX-License-Identifier: Apache-2.0
"""The changes that watchers are sent, encoded: those of an ordinary write at once, those of a large revision in steps.

Laws
- The watchers that get the same changes share them, and they are encoded once.
- The encoding of a large revision is a row of chunks, each of whole fields of a WatchResponse, in the order of the
  events. So a response, or a fragment of one, is a head and some of the chunks, and no copy of it is made.

Does not do: deciding which changes are large (watch_hub.py, limits.py), sending.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from lessor.base import limits
from lessor.state.encode import nested
from lessor.state.mvcc import Event

_EVENTS_TAG: Final = b"\x5a"  # field 11 of WatchResponse, length-delimited

# A change as a watcher gets it: the event, and the version before it if the watcher asked for that and it is retained.
Change = tuple[Event, Event | None]


def event_bytes(event: Event, previous: Event | None) -> bytes:
    """The encoded mvccpb.Event. Without `previous` it is encoded once per event and shared by all watchers."""
    encoded = event.event_bytes()
    return encoded if previous is None else encoded + nested(b"\x1a", previous.kv_bytes())


class Changes:
    """The changes of one revision, or of a stretch of history up to it; shared by the watchers that get the same."""

    __slots__ = ("_fields", "events", "revision")

    def __init__(self, revision: int, events: list[Change]) -> None:
        self.revision = revision
        self.events = events
        self._fields: bytes | None = None

    def fields(self) -> bytes:
        """The events as fields of a WatchResponse; encoded once."""
        if self._fields is None:
            self._fields = b"".join(self.each_field())
        return self._fields

    def each_field(self) -> list[bytes]:
        """The same, one field per event."""
        return [nested(_EVENTS_TAG, event_bytes(event, previous)) for event, previous in self.events]


class LargeChanges:
    """The changes of one revision that are too many, or too large, for one step."""

    __slots__ = (
        "_at",
        "_events",
        "_fields",
        "_fields_bytes",
        "_keep",
        "_part",
        "_parts",
        "_previous_of",
        "chunks",
        "count",
        "encoded",
        "revision",
        "size_bytes",
    )

    def __init__(
        self,
        revision: int,
        events: Sequence[Event],
        parts: list[tuple[int, int]],
        keep: Callable[[Event], bool] | None,
        previous_of: Callable[[Event], Event | None] | None,
    ) -> None:
        """`events`: all of the revision. `parts`: (first, behind the last) of the stretches of them to look at.

        `keep`: which of those count; None: all. `previous_of`: finds the prev_kv of each; None: they are sent without.
        """
        self.revision = revision
        self.count = 0  # of the events encoded until now
        self.size_bytes = 0  # of `chunks`
        # The encoding: each chunk has so many bytes at most as the first step was told, or is a single event.
        self.chunks: list[bytes] = []
        self.encoded = not parts  # whether `chunks` has all
        self._events: Sequence[Event] = events
        self._parts = parts
        self._part = 0  # the index of the part that is looked at
        self._at = parts[0][0] if parts else 0
        self._keep = keep
        self._previous_of = previous_of
        self._fields: list[bytes] = []  # of the chunk that is not full yet
        self._fields_bytes = 0

    def encode_some(self, chunk_bytes_max: int) -> int:
        """The next step. Returns its cost, in events looked at and half KiB of encoding. Not once it is `encoded`."""
        looked, made_bytes = 0, 0
        keep, previous_of = self._keep, self._previous_of
        while looked < limits.WATCH_STEP_EVENTS and made_bytes < limits.READ_STEP_BYTES:
            stop = self._parts[self._part][1]
            if self._at == stop:
                self._part += 1
                if self._part == len(self._parts):
                    self._end()
                    break
                self._at = self._parts[self._part][0]
                continue
            event = self._events[self._at]
            self._at += 1
            looked += 1
            if keep is None or keep(event):
                field = nested(_EVENTS_TAG, event_bytes(event, previous_of(event) if previous_of is not None else None))
                made_bytes += len(field)
                self._add(field, chunk_bytes_max)
        return looked + made_bytes // 512

    def _add(self, field: bytes, chunk_bytes_max: int) -> None:
        if self._fields and self._fields_bytes + len(field) >= chunk_bytes_max:
            self._close_chunk()
        self._fields.append(field)
        self._fields_bytes += len(field)
        self.count += 1

    def _close_chunk(self) -> None:
        if self._fields:
            self.chunks.append(b"".join(self._fields))
            self.size_bytes += self._fields_bytes
            self._fields, self._fields_bytes = [], 0

    def _end(self) -> None:
        self._close_chunk()
        self.encoded = True

    def forget(self) -> None:
        """Lets the encoding go. It can be made again."""
        self.count = self.size_bytes = self._part = 0
        self.chunks = []  # responses under way may have the old ones
        self.encoded = False
        self._at = self._parts[0][0]

    def fragments(self, size_max: int) -> list[list[bytes]]:
        """The chunks, in groups that are below `size_max` bytes each, or a single event that is larger by itself."""
        groups: list[list[bytes]] = []
        size_bytes = size_max
        for chunk in self.chunks:
            if size_bytes + len(chunk) >= size_max:
                groups.append([])
                size_bytes = 0
            groups[-1].append(chunk)
            size_bytes += len(chunk)
        return groups
