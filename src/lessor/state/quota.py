# SPDX-License-Identifier: Apache-2.0
"""What counts for --quota-backend-bytes, and what a request would add.

Laws
- What counts depends on the data alone: the retained versions of keys, tombstones included, and the leases. Not on how
  a log or a file holds them, nor on when they were written.
- A compaction makes room: a version counts until the sweep takes it out of memory.
- A request is refused when what counts and its cost reach the quota, as etcd's rule is. Costs are etcd's own: more than
  what the request will count, so that there is something left for the next.

Theory of operation. etcd compares with the size of its file. A version takes more there than its bytes: a key of
bbolt's, the fields of the message, a share of the pages. `stored_bytes` is that, as measured on etcd 3.7.3, within a
third for any size of value (docs/decisions/0025-quota.md). The store adds it up: one sum for each version that comes
or goes.

Does not do: refusing and raising the alarm (machine.py), the size of the files (durable/).
"""

from __future__ import annotations

from typing import Final

from lessor.state.txn import PUT, TXN, Node, Operation

EMPTY_BYTES: Final = 28_672  # an etcd 3.7.3 without data: seven pages
LEASE_BYTES: Final = 64  # of a lease, and the cost of a grant
PUT_COST: Final = 256  # beside key and value
UNLIMITED: Final = 1 << 62


def put_cost(key: bytes, value: bytes) -> int:
    return PUT_COST + len(key) + len(value)


def txn_cost(node: Node) -> int:
    """Of the dearer branch, with all txns in it; 0 for a txn that puts nothing. Cost: its operations."""
    success, failure = _cost(node.success), _cost(node.failure)
    return success if success > failure else failure


def _cost(operations: list[Operation]) -> int:
    cost = 0
    for kind, request in operations:
        if kind == PUT:
            cost += put_cost(request[0], request[1])
        elif kind == TXN:
            cost += txn_cost(request)
    return cost
