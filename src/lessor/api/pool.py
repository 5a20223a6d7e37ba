# SPDX-License-Identifier: Apache-2.0
"""The descriptor pool that holds our protobuf classes, apart from protobuf's default pool.

protobuf refuses to load two files that define the same message name in one pool. Any other etcd client for Python
brings its own `etcdserverpb` classes, so ours must not share the default pool with them: `scripts/generate` makes the
generated modules use this one.
"""

from google.protobuf.descriptor_pool import DescriptorPool

POOL = DescriptorPool()


class _Symbols:
    """Stands in for protobuf's symbol database, which would register our messages in the default pool."""

    def RegisterMessage(self, message: type) -> type:  # noqa: N802 - protobuf's name
        return message


SYMBOLS = _Symbols()
