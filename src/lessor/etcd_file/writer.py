# SPDX-License-Identifier: Apache-2.0
"""Writes a data file as bbolt has it, from its first page to its last: nothing is read back, little is kept in memory.

Laws
- What is in memory at a time is one unfinished page of each level of one tree, whatever the tree's size. Elements that
  are longer than a page are in memory one at a time.
- Every page of the file is in use: there is nothing on the list of free pages.
- No bytes are in the file that were not given: what is left of a page is zeros.

Theory of operation. Elements come in ascending order of keys, so each leaf is written when the next element does not
fit, and its first key goes to the branch above it, which does the same. A tree is whole when its last pages are
written, upward; the topmost one is its root. The metas name the root of all and come last, in the file's first pages.

    tree     | leaf | leaf | leaf | branch | leaf | leaf | branch | root |    in the order of the file

A bucket of one small leaf is no page of its own but a part of its element (inline), as bbolt writes it.

Does not do: knowing what stands in a bucket (backend.py); checksums behind the file.
"""

import struct
from collections.abc import Iterable
from functools import cache
from typing import BinaryIO, Final

from lessor.etcd_file import layout
from lessor.etcd_file.layout import BRANCH_ELEMENT, LEAF_ELEMENT, PAGE_BYTES, PAGE_HEADER

HEADER_BYTES: Final = PAGE_HEADER.size
INLINE_BYTES_MAX: Final = PAGE_BYTES // 4  # of the leaf of an inline bucket: bbolt's own bound
_FREELIST: Final = 2  # the page of the list of free pages, behind the two metas

Element = tuple[bytes, bytes]


class FileWriter:
    """Writes to `file`, which is empty and can seek. Every call may raise OSError; the file is of no use then."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._next = 0  # number of the page that is written next
        self._buckets: list[tuple[bytes, bytes]] = []
        file.write(bytes(2 * PAGE_BYTES))  # the metas: see `finish`
        self._next = 2
        self.page(layout.FREELIST_PAGE, 0, b"")

    def page(self, flags: int, count: int, content: bytes) -> int:
        """Writes one page, and those over which it goes on. Returns its number."""
        number = self._next
        size = HEADER_BYTES + len(content)
        pages = -(-size // PAGE_BYTES)
        padding = bytes(pages * PAGE_BYTES - size)
        self._file.write(b"".join((PAGE_HEADER.pack(number, flags, count, pages - 1), content, padding)))
        self._next += pages
        return number

    def bucket(self, name: bytes, elements: Iterable[Element]) -> None:
        """Writes a bucket with all its elements, in ascending order of keys. Buckets come in ascending order too."""
        assert not self._buckets or self._buckets[-1][0] < name, "buckets come in order"
        tree = Tree(self)
        tree.add(elements)
        inline = tree.inline()
        if inline is not None:
            self._buckets.append((name, layout.BUCKET.pack(0, 0) + inline))
        else:
            self._buckets.append((name, layout.BUCKET.pack(tree.finish(), 0)))

    def finish(self) -> int:
        """Writes what leads to the buckets. Returns the size of the file in bytes."""
        tree = Tree(self, layout.BUCKET_ELEMENT)
        tree.add(self._buckets)
        root = tree.finish()
        size = self._next * PAGE_BYTES
        self._file.seek(0)
        for transaction in (0, 1):
            fields = (layout.MAGIC, layout.VERSION, PAGE_BYTES, 0, root, 0, _FREELIST, self._next, transaction)
            meta = layout.META.pack(*fields, 0)[: layout.META_CHECKED_BYTES]
            content = PAGE_HEADER.pack(transaction, layout.META_PAGE, 0, 0) + meta
            content += struct.pack("<Q", layout.fnv64a(meta))
            self._file.write(content.ljust(PAGE_BYTES, b"\0"))
        self._file.seek(size)
        self._file.flush()
        return size


class Tree:
    """The pages of one bucket, from the left to the right."""

    def __init__(self, writer: FileWriter, flags: int = 0) -> None:
        """`flags`: of each element of a leaf."""
        self._writer = writer
        self._flags = flags
        self._branches: list[_Branch] = []  # of each level above the leaves, the lowest first
        # The unfinished leaf.
        self._keys: list[bytes] = []
        self._data: list[bytes] = []  # key, value, key, value, ...
        self._size = HEADER_BYTES

    def add(self, elements: Iterable[Element]) -> None:
        keys, data, size = self._keys, self._data, self._size
        room = PAGE_BYTES
        for key, value in elements:
            size += LEAF_ELEMENT.size + len(key) + len(value)
            if size > room:
                if keys:
                    self._write_leaf()
                    keys, data = self._keys, self._data
                    size = HEADER_BYTES + LEAF_ELEMENT.size + len(key) + len(value)
                room = PAGE_BYTES * -(-size // PAGE_BYTES)  # of a long element's last page the next ones get the rest
            keys.append(key)
            data.append(key)
            data.append(value)
        self._size = size

    def inline(self) -> bytes | None:
        """The only leaf as a part of the bucket's element; None if there are more, or it is too long for that."""
        if self._branches or self._size > INLINE_BYTES_MAX:
            return None
        return PAGE_HEADER.pack(0, layout.LEAF_PAGE, len(self._keys), 0) + self._leaf()

    def finish(self) -> int:
        """Writes the last pages. Returns the number of the root's."""
        if not self._branches:
            return self._writer.page(layout.LEAF_PAGE, len(self._keys), self._leaf())
        self._write_leaf()
        level = 0
        while True:
            branch = self._branches[level]
            if level == len(self._branches) - 1:
                return branch.write()
            first, number = branch.first, branch.write()
            self._branches[level + 1].add(first, number)
            self._go_up(level + 1)
            level += 1

    def _leaf(self) -> bytes:
        """The content of the unfinished leaf, behind its header."""
        data, flags = self._data, self._flags
        place = len(self._keys) * LEAF_ELEMENT.size
        heads: list[int] = []
        for key, value in zip(data[::2], data[1::2], strict=True):
            key_bytes, value_bytes = len(key), len(value)
            heads += (flags, place, key_bytes, value_bytes)
            place += key_bytes + value_bytes - LEAF_ELEMENT.size
        return b"".join((_numbers(len(heads)).pack(*heads), *data))

    def _write_leaf(self) -> None:
        number = self._writer.page(layout.LEAF_PAGE, len(self._keys), self._leaf())
        first = self._keys[0]
        self._keys, self._data = [], []
        if not self._branches:
            self._branches.append(_Branch(self._writer))
        self._branches[0].add(first, number)
        self._go_up(0)

    def _go_up(self, level: int) -> None:
        """Writes the pages of branches that are full, from `level` on."""
        while self._branches[level].full:
            first, number = self._branches[level].write_all_but_two()
            level += 1
            if level == len(self._branches):
                self._branches.append(_Branch(self._writer))
            self._branches[level].add(first, number)


class _Branch:
    """The unfinished page of one level. In the end every page has two children at least."""

    def __init__(self, writer: FileWriter) -> None:
        self._writer = writer
        self._children: list[tuple[bytes, int]] = []
        self._size = HEADER_BYTES

    @property
    def full(self) -> bool:
        """Whether the children do not fit in a page any more, and are enough for two pages."""
        return self._size > PAGE_BYTES and len(self._children) >= 4

    @property
    def first(self) -> bytes:
        return self._children[0][0]

    def add(self, key: bytes, number: int) -> None:
        self._children.append((key, number))
        self._size += BRANCH_ELEMENT.size + len(key)

    def write_all_but_two(self) -> tuple[bytes, int]:
        """Returns the first key and the number of the page; the last two children begin the next one."""
        kept = self._children[-2:]
        del self._children[-2:]
        first, number = self.first, self.write()
        self._children, self._size = [], HEADER_BYTES
        for key, child in kept:
            self.add(key, child)
        return first, number

    def write(self) -> int:
        """Writes the page of all children. Returns its number."""
        children = self._children
        place = len(children) * BRANCH_ELEMENT.size
        heads: list[bytes] = []
        for key, child in children:
            heads.append(BRANCH_ELEMENT.pack(place, len(key), child))
            place += len(key) - BRANCH_ELEMENT.size
        content = b"".join((*heads, *(key for key, _ in children)))
        return self._writer.page(layout.BRANCH_PAGE, len(children), content)


@cache
def _numbers(count: int) -> struct.Struct:
    """That many unsigned numbers of 32 bits."""
    return struct.Struct(f"<{count}I")
