# SPDX-License-Identifier: Apache-2.0
"""The descriptor pool of our protobuf classes, apart from protobuf's default pool.

protobuf refuses to load two files that define the same message name into one pool. Any other etcd client for Python
brings `etcdserverpb` classes of its own, so ours must not be in the default pool with them. `scripts/generate` makes
the generated modules use this pool.
"""

from google.protobuf.descriptor_pool import DescriptorPool

POOL = DescriptorPool()


class _Symbols:
    """Stands in for protobuf's symbol database, which would register our messages in the default pool."""

    def RegisterMessage(self, message: type) -> type:  # noqa: N802 - protobuf's name
        return message


SYMBOLS = _Symbols()
