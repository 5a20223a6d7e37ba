# SPDX-License-Identifier: Apache-2.0
"""A copy of the keys below a prefix that follows the original."""

from collections.abc import AsyncGenerator, Iterable, Set
from contextlib import aclosing

from lessor.api.proto import mvcc_pb2 as mvcc
from lessor.client._caller import insist
from lessor.client._calls import Calls
from lessor.client._errors import WatchCanceled

Keys = dict[bytes, mvcc.KeyValue]


async def follow(calls: Calls, prefix: bytes) -> AsyncGenerator[tuple[Keys, Set[bytes]], None]:
    """Yields the copy, always the same dict, and the keys that have changed or gone since the step before.

    The first step shows all keys, also when there are none. When the history that it needs next is compacted, it reads
    everything anew and shows the difference. Raises as `get` does at first, later only errors that are not passing.
    """
    keys: Keys = {}
    reply = await calls.get(prefix, prefix=True)
    while True:
        found = {kv.key: kv for kv in reply.kvs}
        changed = {key for key in keys.keys() | found.keys() if keys.get(key) != found.get(key)}
        keys.clear()
        keys.update(found)
        yield keys, changed
        watch = calls.watch(prefix, prefix=True, start_revision=reply.header.revision + 1)
        async with aclosing(watch) as responses:
            async for response in responses:
                if response.canceled and not response.compact_revision:
                    raise WatchCanceled(response.cancel_reason)
                if response.events:
                    yield keys, _apply(keys, response.events)
        reply = await insist(lambda: calls.get(prefix, prefix=True))


def _apply(keys: Keys, events: Iterable[mvcc.Event]) -> Set[bytes]:
    changed = set()
    for event in events:
        changed.add(event.kv.key)
        if event.type == mvcc.Event.DELETE:
            keys.pop(event.kv.key, None)
        else:
            keys[event.kv.key] = event.kv
    return changed
