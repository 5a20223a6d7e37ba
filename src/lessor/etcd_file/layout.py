# SPDX-License-Identifier: Apache-2.0
"""The form of etcd's data file: pages of bbolt, and the buckets that etcd keeps in them.

Laws
- The numbers here are facts of the file format. Nothing is decided here, and nothing is read or written.
- All numbers of bbolt are in the byte order of the machine that wrote them; only files of little-endian machines are
  ours. All numbers of etcd within keys and values are big-endian.

Theory of operation. The file is a row of pages of one size. A page has a number, its place in the file. A longer page
goes on over the `overflow` pages after it; those have no header of their own. Pages 0 and 1 are the two metas; the
valid one with the higher transaction id counts. It names the root bucket's page. A bucket is a B+ tree: branch pages
lead to leaf pages, whose elements are (key, value) in ascending order of keys. An element of a leaf with BUCKET_ELEMENT
is a bucket within the bucket: its value is a BUCKET header, and where that has root 0, one leaf page follows within the
value (an inline bucket). etcd has a root bucket with the buckets below, and no deeper ones.

    page     | header | element 0 | element 1 | ... | key 0 value 0 | key 1 value 1 | ...
                          pos ------------------------^  counted from the element's own first byte

A snapshot is that file and, behind it, the 32 bytes of its SHA-256. A stopped member's `member/snap/db` has none.

Does not do: raft's log and its snapshots, which are files beside this one.
"""

import struct
from typing import Final

# --- pages of bbolt ---------------------------------------------------------------------------------------------------
# id (the page's own number), flags (one of those below), count (of elements), overflow (pages that follow it)
PAGE_HEADER: Final = struct.Struct("<QHHI")
BRANCH_PAGE: Final = 0x01
LEAF_PAGE: Final = 0x02
META_PAGE: Final = 0x04
FREELIST_PAGE: Final = 0x10

# Behind the header of a branch page, for each child: pos, key bytes, page. The key is the child's first, or smaller.
BRANCH_ELEMENT: Final = struct.Struct("<IIQ")
# Behind the header of a leaf page, for each key: flags (BUCKET_ELEMENT or 0), pos, key bytes, value bytes
LEAF_ELEMENT: Final = struct.Struct("<IIII")
BUCKET_ELEMENT: Final = 0x01
# The value of such an element: page of the bucket's root (0: an inline page follows here), sequence (etcd: 0)
BUCKET: Final = struct.Struct("<QQ")

# Behind the header of a freelist page: page ids, ascending. COUNT_IN_FIRST in `count` says that the first number is
# their count.
PAGE_ID: Final = struct.Struct("<Q")
COUNT_IN_FIRST: Final = 0xFFFF

# Behind the header of a meta page: magic, version, page size, flags (0), root bucket (page, sequence), page of the
# freelist, number of pages that were ever used (the file may be longer), transaction id (even ones are in page 0, odd
# ones in page 1), checksum: `fnv64a` of the META_CHECKED_BYTES before it.
META: Final = struct.Struct("<IIIIQQQQQQ")
META_CHECKED_BYTES: Final = 56
MAGIC: Final = 0xED0CDAED
MAGIC_BIG_ENDIAN: Final = 0xEDDA0CED  # what a reader sees of it in the file of a machine with the other byte order
VERSION: Final = 2
NO_FREELIST: Final = 0xFFFF_FFFF_FFFF_FFFF  # in the place of the freelist's page: none is kept (etcd's own files)

PAGE_BYTES: Final = 4_096  # of most machines: bbolt takes the operating system's
PAGE_BYTES_MIN: Final = 1_024
PAGE_BYTES_MAX: Final = 16_777_216
KEY_BYTES_MAX: Final = 32_768  # of bbolt's keys
VALUE_BYTES_MAX: Final = 2_147_483_646

CHECKSUM_BYTES: Final = 32  # SHA-256 behind a snapshot
CHECKSUM_MODULUS: Final = 512  # the size of a file with a checksum, modulo this, is CHECKSUM_BYTES: etcdutl's test

_FNV_OFFSET: Final = 0xCBF2_9CE4_8422_2325
_FNV_PRIME: Final = 0x100_0000_01B3


def fnv64a(data: bytes) -> int:
    """The checksum of a meta page."""
    value = _FNV_OFFSET
    for byte in data:
        value = (value ^ byte) * _FNV_PRIME & 0xFFFF_FFFF_FFFF_FFFF
    return value


# --- buckets of etcd --------------------------------------------------------------------------------------------------
# All of them are there once a server of 3.5 or newer has started. Keys are in ascending order of bytes.
KEY: Final = b"key"  # REVISION_KEY, perhaps with TOMBSTONE: mvccpb.KeyValue; of a tombstone only its key
META_BUCKET: Final = b"meta"  # the names below
LEASE: Final = b"lease"  # NUMBER, the lease's id: leasepb.Lease (etcd_file.proto)
ALARM: Final = b"alarm"  # etcdserverpb.AlarmMember: nothing
CLUSTER: Final = b"cluster"  # the names below
MEMBERS: Final = b"members"  # id as `member_key`: JSON {"id": 1, "peerURLs": [...], "name": "...", "clientURLs": [...]}
MEMBERS_REMOVED: Final = b"members_removed"  # id as `member_key`: "removed"
AUTH: Final = b"auth"  # the names below
AUTH_USERS: Final = b"authUsers"  # name: authpb.User
AUTH_ROLES: Final = b"authRoles"  # name: authpb.Role
BUCKETS: Final = (KEY, META_BUCKET, LEASE, ALARM, CLUSTER, MEMBERS, MEMBERS_REMOVED, AUTH, AUTH_USERS, AUTH_ROLES)

# Of a change: main, "_", sub. A tombstone has one byte more.
REVISION_KEY: Final = struct.Struct(">QcQ")
SEPARATOR: Final = b"_"
TOMBSTONE: Final = b"t"
NUMBER: Final = struct.Struct(">Q")

# In META_BUCKET. The compactions are REVISION_KEYs with sub 0; a compaction that is scheduled and not finished is
# carried out at the next start. The newest revision stands nowhere: it is that of the last row of KEY, but at least the
# scheduled compaction.
SCHEDULED_COMPACT: Final = b"scheduledCompactRev"
FINISHED_COMPACT: Final = b"finishedCompactRev"
CONSISTENT_INDEX: Final = b"consistent_index"  # NUMBER: raft's index of the newest entry that is in here
TERM: Final = b"term"  # NUMBER, since 3.5: raft's term of that entry
CONF_STATE: Final = b"confState"  # since 3.5: JSON {"voters": [1, ...], "auto_leave": false}
STORAGE_VERSION: Final = b"storageVersion"  # since 3.6: "3.6.0"; none is 3.5 or older
# In CLUSTER
CLUSTER_VERSION: Final = b"clusterVersion"  # "3.6.0"
DOWNGRADE: Final = b"downgrade"  # JSON {"target-version": "", "enabled": false}
# In AUTH
AUTH_ENABLED: Final = b"authEnabled"  # AUTH_ON or AUTH_OFF; none: off
AUTH_ON: Final = b"\x01"
AUTH_OFF: Final = b"\x00"
AUTH_REVISION: Final = b"authRevision"  # NUMBER


def member_key(member_id: int) -> bytes:
    """A member's id, uint64, as a key of MEMBERS and MEMBERS_REMOVED: hexadecimal, without zeros before it."""
    return b"%x" % member_id
