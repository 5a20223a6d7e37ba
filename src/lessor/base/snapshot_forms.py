# SPDX-License-Identifier: Apache-2.0
"""The forms of a snapshot's file, and how a caller names the one that it wants.

Law: who names none gets etcd's. An etcd does not know the field, and sends its own.
"""

from typing import Final

FIELD: Final = "lessor-snapshot-format"  # in the metadata of a call of Maintenance/Snapshot
ETCD: Final = "etcd"
LESSOR: Final = "lessor"
FORMS: Final = (LESSOR, ETCD)
