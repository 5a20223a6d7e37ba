# SPDX-License-Identifier: Apache-2.0
"""The keys of locks and elections.

Law: a contender's key is the name, a slash, and its lease's id in lower-case hexadecimal. Every client of etcd knows
this form, so it never changes.
"""


def prefix_of(name: bytes) -> bytes:
    """The prefix of all keys of a lock or an election. It ends in a slash, so its range has an upper bound."""
    return name + b"/"


def key_of(name: bytes, lease_id: int) -> bytes:
    """The key of one contender."""
    return prefix_of(name) + b"%x" % lease_id
