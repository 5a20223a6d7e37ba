# SPDX-License-Identifier: Apache-2.0
"""A file of bbolt whose numbers can be set one by one, and what reads such a file to its end."""

import struct
from collections.abc import Callable
from typing import Final

from lessor.etcd_file import layout
from lessor.etcd_file.content import Change, Content, SavedLease
from lessor.etcd_file.reader import BoltFile

PAGE: Final = layout.PAGE_BYTES
# Where a field is behind the header of a meta page, and its form.
META_FIELDS: Final = {
    "magic": (0, "<I"),
    "version": (4, "<I"),
    "page_bytes": (8, "<I"),
    "root": (16, "<Q"),
    "pages": (40, "<Q"),
    "transaction": (48, "<Q"),
    "checksum": (56, "<Q"),
}
HEADER_FIELDS: Final = {"id": (0, "<Q"), "flags": (8, "<H"), "count": (10, "<H"), "overflow": (12, "<I")}
LEAF_FIELDS: Final = {"flags": (0, "<I"), "pos": (4, "<I"), "key_bytes": (8, "<I"), "value_bytes": (12, "<I")}
BRANCH_FIELDS: Final = {"pos": (0, "<I"), "key_bytes": (4, "<I"), "child": (8, "<Q")}


class Pages:
    """The pages of a file; without a checksum behind them."""

    def __init__(self, data: bytes) -> None:
        self.data = bytearray(data)
        self.count = len(data) // PAGE

    def header(self, page: int) -> tuple[int, int, int, int]:
        return layout.PAGE_HEADER.unpack_from(self.data, page * PAGE)

    def set_header(self, page: int, **fields: int) -> None:
        self._set(page * PAGE, HEADER_FIELDS, fields)

    def set_meta(self, page: int, **fields: int) -> None:
        """The checksum is made right, unless it is set."""
        at = page * PAGE + layout.PAGE_HEADER.size
        self._set(at, META_FIELDS, fields)
        if "checksum" not in fields:
            checksum = layout.fnv64a(bytes(self.data[at : at + layout.META_CHECKED_BYTES]))
            self._set(at, META_FIELDS, {"checksum": checksum})

    def set_metas(self, **fields: int) -> None:
        self.set_meta(0, **fields)
        self.set_meta(1, **fields)

    def set_element(self, page: int, index: int, **fields: int) -> None:
        at = page * PAGE + layout.PAGE_HEADER.size + 16 * index
        leaf = self.header(page)[1] == layout.LEAF_PAGE
        self._set(at, LEAF_FIELDS if leaf else BRANCH_FIELDS, fields)

    def _set(self, at: int, forms: dict[str, tuple[int, str]], fields: dict[str, int]) -> None:
        for name, value in fields.items():
            offset, form = forms[name]
            struct.pack_into(form, self.data, at + offset, value)

    @property
    def root(self) -> int:
        """Page of the root bucket."""
        return int(layout.META.unpack_from(self.data, layout.PAGE_HEADER.size)[4])

    def element(self, page: int, index: int) -> tuple[int, ...]:
        """(flags, pos, key bytes, value bytes) of a leaf, (pos, key bytes, child) of a branch."""
        at = page * PAGE + layout.PAGE_HEADER.size + 16 * index
        leaf = self.header(page)[1] == layout.LEAF_PAGE
        return (layout.LEAF_ELEMENT if leaf else layout.BRANCH_ELEMENT).unpack_from(self.data, at)

    def key_at(self, page: int, index: int) -> int:
        """Where the key of an element begins in the file."""
        leaf = self.header(page)[1] == layout.LEAF_PAGE
        return page * PAGE + layout.PAGE_HEADER.size + 16 * index + self.element(page, index)[1 if leaf else 0]

    def bucket_at(self, name: bytes) -> tuple[int, int]:
        """Its number in the page of the root bucket, and where its value begins in the file."""
        for index in range(self.header(self.root)[2]):
            start, key_bytes = self.key_at(self.root, index), self.element(self.root, index)[2]
            if self.data[start : start + key_bytes] == name:
                return index, start + key_bytes
        raise KeyError(name)

    def bucket_root(self, name: bytes) -> int:
        _, at = self.bucket_at(name)
        return int(layout.BUCKET.unpack_from(self.data, at)[0])

    def set_bucket_root(self, name: bytes, page: int) -> None:
        _, at = self.bucket_at(name)
        struct.pack_into("<Q", self.data, at, page)


class Reading:
    """What was read, and how much had to be read for it."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.bytes_read = 0
        self.content = Content(BoltFile(self._read_at, len(data)))
        self.changes: list[Change] = list(self.content.changes())
        self.leases: list[SavedLease] = list(self.content.leases())

    def _read_at(self, offset: int, size: int) -> bytes:
        assert 0 <= offset <= offset + size <= len(self._data), "outside of the file"
        self.bytes_read += size
        return self._data[offset : offset + size]


def changed(data: bytes, change: Callable[[Pages], object]) -> bytes:
    pages = Pages(data)
    change(pages)
    return bytes(pages.data)


def small_file(page_bytes: int, buckets: dict[bytes, dict[bytes, bytes]]) -> bytes:
    """A file with pages of that size, whose buckets all lie in the page of the root bucket."""

    def leaf(rows: dict[bytes, bytes], flags: int, page: int) -> bytes:
        at = layout.LEAF_ELEMENT.size * len(rows)
        elements, content = b"", b""
        for index, (key, value) in enumerate(sorted(rows.items())):
            position = at + len(content) - layout.LEAF_ELEMENT.size * index
            elements += layout.LEAF_ELEMENT.pack(flags, position, len(key), len(value))
            content += key + value
        return layout.PAGE_HEADER.pack(page, layout.LEAF_PAGE, len(rows), 0) + elements + content

    inline = {name: layout.BUCKET.pack(0, 0) + leaf(rows, 0, 0) for name, rows in buckets.items()}
    pages = []
    for page in (0, 1):
        meta = layout.META.pack(layout.MAGIC, layout.VERSION, page_bytes, 0, 2, 0, layout.NO_FREELIST, 3, page, 0)
        checksum = layout.fnv64a(meta[: layout.META_CHECKED_BYTES]).to_bytes(8, "little")
        header = layout.PAGE_HEADER.pack(page, layout.META_PAGE, 0, 0)
        pages.append(header + meta[: layout.META_CHECKED_BYTES] + checksum)
    pages.append(leaf(inline, layout.BUCKET_ELEMENT, 2))
    return b"".join(page.ljust(page_bytes, b"\0") for page in pages)
