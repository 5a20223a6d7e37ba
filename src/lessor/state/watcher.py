# SPDX-License-Identifier: Apache-2.0
"""One watch: what it covers, and how far it has come.

Law: a watcher holds no events. What it was sent is before `next_revision`.

Does not do: anything with other watchers (watch_hub.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from lessor.base.key_range import open_end
from lessor.state.mvcc import Event

NO_PUT: Final = 0  # WatchCreateRequest.FilterType
NO_DELETE: Final = 1


class Watcher:
    """One watch. The hub changes `next_revision`, `lagging` and `cancelled`; the rest belongs to the owner."""

    __slots__ = (
        "at_once",
        "cancelled",
        "end",
        "filters",
        "fragment",
        "key",
        "lagging",
        "next_revision",
        "owner",
        "prev_kv",
        "progress_notify",
        "watch_id",
    )

    def __init__(
        self,
        watch_id: int,
        key: bytes,
        end: bytes | None = None,
        *,
        start_revision: int = 0,
        filters: Iterable[int] = (),
        prev_kv: bool = False,
        fragment: bool = False,
        progress_notify: bool = False,
        at_once: bool = False,
        owner: Any = None,
    ) -> None:
        """`end`: None for one key, b"" for no upper bound. `start_revision` 0: from now on.

        `at_once`: the owner is part of the server and gets publications before they are durable.
        """
        self.watch_id = watch_id
        self.key = key
        self.end = end
        self.filters = frozenset(filters)
        self.prev_kv = prev_kv
        self.fragment = fragment
        self.progress_notify = progress_notify
        self.at_once = at_once
        self.next_revision = start_revision  # no event before it will be sent
        self.lagging = False
        self.cancelled = False
        self.owner = owner

    @property
    def range_bytes(self) -> int:
        """The bytes of the key and of the end of the range."""
        return len(self.key) + len(self.end or b"")

    def wants(self, event: Event) -> bool:
        """Whether the filters let the event through."""
        return not self.filters or (NO_DELETE if event.value is None else NO_PUT) not in self.filters

    def covers(self, key: bytes) -> bool:
        end = self.end
        if end is None:
            return key == self.key
        return self.key <= key and (not end or key < end)


def watch_range(key: bytes, range_end: bytes) -> tuple[bytes, bytes | None]:
    """A create request's key and range_end as a watcher has them. An empty key means the first possible key."""
    return key or b"\0", open_end(range_end) if range_end else None


def range_is_empty(key: bytes, end: bytes | None) -> bool:
    """Whether no key can match, which is an error of the create request."""
    return bool(end) and key >= (end or b"")
