# SPDX-License-Identifier: Apache-2.0
"""A reader of bbolt's files that believes nothing: each number is checked before it is used.

Laws
- A damaged file gives one `EtcdFileError`, whatever is wrong with it, or the content that a whole file would have given
  up to there. Only bytes of values that no number depends on can be wrong unseen: the pages have no checksums.
- Each page is read once at most, over all buckets. So no circle of pages is walked, and the work is bounded by the
  size of the file.
- Memory holds one page at a time of each level, and one value. A long page is read piece by piece.

Theory of operation. bbolt writes what is in a page without gaps: the elements, and behind them their keys and values in
the same order. The reader insists on that, on the order of the keys over the whole bucket, on each branch key being no
greater than its child's first key, and on there being no empty page. So a changed number of elements, position, size or
page is found, though not each one at once.

A crash may spoil the meta that was written last; the other one is the state before it, whole. So that one counts then,
as bbolt has it, and `one_meta` says so.

Does not do: opening files, SHA-256, the meaning of keys and values (content.py); the list of free pages is not looked
at, because nothing depends on it.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Final, NamedTuple

from lessor.etcd_file import layout
from lessor.etcd_file.layout import BRANCH_ELEMENT, BUCKET, LEAF_ELEMENT, META, PAGE_HEADER

ROW_BYTES_MAX: Final = 268_435_456  # of a key and its value: etcd's requests have 1.5 MiB, and its messages 2 GiB
_LEVELS_MAX: Final = 64  # of a tree: each page has two children at least
_FIRST_PAGE: Final = 2  # behind the metas

# (offset, size) -> those bytes; fewer only at the end of the file. Offsets and sizes are within the file.
ReadAt = Callable[[int, int], bytes]
Pair = tuple[bytes, bytes]


class EtcdFileError(Exception):
    """The file cannot be read. The message is one line: what is wrong, without the file's name."""


class Meta(NamedTuple):
    """A valid meta page."""

    page_bytes: int
    root: int  # page of the root bucket
    pages: int  # that were ever used
    transaction: int


class _Page(NamedTuple):
    """Where a page begins and ends in the file, and what its header says."""

    number: int
    start: int
    end: int
    flags: int
    elements: int


class BoltFile:
    """The buckets of a file. To be read once."""

    def __init__(self, read_at: ReadAt, size: int) -> None:
        """`size`: of the file in bytes, without a checksum at its end. Raises EtcdFileError."""
        self._read = read_at
        self._size = size
        self.one_meta = False  # whether one of the two was unreadable: it may have been the newer one
        self.meta = self._find_meta()
        self._check_meta()
        self._seen = bytearray(self.meta.pages)  # 1 for each page that was read

    @property
    def size_bytes(self) -> int:
        """Of the pages that were ever used; the file may be longer."""
        return self.meta.pages * self.meta.page_bytes

    # --- metas ------------------------------------------------------------------------------------------------------

    def _find_meta(self) -> Meta:
        problems: list[str] = []
        first = self._meta_at(0, problems)
        if first is not None:
            second = self._meta_at(first.page_bytes, problems)
            if second is None or second.page_bytes != first.page_bytes:
                self.one_meta = True
                return first
            return max(first, second, key=lambda meta: meta.transaction)
        page_bytes = layout.PAGE_BYTES_MIN
        while page_bytes <= layout.PAGE_BYTES_MAX:
            second = self._meta_at(page_bytes, problems)
            if second is not None and second.page_bytes == page_bytes:
                self.one_meta = True
                return second
            page_bytes *= 2
        raise EtcdFileError(problems[0] if problems else "it does not begin as a file of bbolt does")

    def _meta_at(self, offset: int, problems: list[str]) -> Meta | None:
        """The meta page that begins there if it is valid; else what is wrong with it is added to `problems`."""
        if offset + PAGE_HEADER.size + META.size > self._size:
            return None
        data = self._read(offset, PAGE_HEADER.size + META.size)
        if len(data) < PAGE_HEADER.size + META.size:
            raise EtcdFileError("it ends while it is read")
        numbers = META.unpack_from(data, PAGE_HEADER.size)
        magic, version, page_bytes, _, root, _, _, pages, transaction, checksum = numbers
        if magic == layout.MAGIC_BIG_ENDIAN:
            problems.append("it is of a machine with the other byte order")
        elif magic != layout.MAGIC:
            return None
        elif version != layout.VERSION:
            problems.append(f"version {version} of bbolt's format, and only {layout.VERSION} is known")
        elif layout.fnv64a(data[PAGE_HEADER.size :][: layout.META_CHECKED_BYTES]) != checksum:
            problems.append("the checksums of its meta pages do not match")
        else:
            return Meta(page_bytes, root, pages, transaction)
        return None

    def _check_meta(self) -> None:
        page_bytes, root, pages, _ = self.meta
        fits = layout.PAGE_BYTES_MIN <= page_bytes <= layout.PAGE_BYTES_MAX and page_bytes & (page_bytes - 1) == 0
        if not fits:
            raise EtcdFileError(f"its pages have {page_bytes} bytes")
        if pages * page_bytes > self._size:
            raise EtcdFileError(f"it has {self._size} bytes of {pages * page_bytes}: it was cut short")
        if self._size % page_bytes:
            raise EtcdFileError(f"it has {self._size} bytes, and pages of {page_bytes}: it was cut short")
        if not _FIRST_PAGE <= root < pages:
            raise EtcdFileError(f"its root is page {root} of {pages}")

    # --- buckets ----------------------------------------------------------------------------------------------------

    def buckets(self) -> Iterator[tuple[bytes, Iterator[Pair]]]:
        """Each bucket with its rows, in order; keys ascend. Rows may be read at any time, once. Raises EtcdFileError.

        Cost: a read of the pages of the root bucket; of a bucket's own pages when its rows are read.
        """
        for name, value, flags in self._tree(self.meta.root):
            if flags != layout.BUCKET_ELEMENT:
                raise EtcdFileError(f"{_shown(name)} beside the buckets is none")
            yield name, self._rows(name, value)

    def _rows(self, name: bytes, value: bytes) -> Iterator[Pair]:
        if len(value) < BUCKET.size:
            raise EtcdFileError(f"bucket {_shown(name)} has {len(value)} bytes")
        root, _ = BUCKET.unpack_from(value)
        elements = self._tree(root) if root else self._inline(value)
        for key, row, flags in elements:
            if flags:
                raise EtcdFileError(f"bucket {_shown(name)} has a bucket in it")
            yield key, row

    def _inline(self, value: bytes) -> Iterator[tuple[bytes, bytes, int]]:
        """The elements of the page that follows a bucket's header. It is in one piece, and has no number of its own."""
        if len(value) < BUCKET.size + PAGE_HEADER.size:
            raise EtcdFileError(f"a bucket within a page has {len(value)} bytes")
        _, flags, count, overflow = PAGE_HEADER.unpack_from(value, BUCKET.size)
        if flags != layout.LEAF_PAGE or overflow:
            raise EtcdFileError("a bucket within a page is no leaf")
        page = _Page(0, BUCKET.size, len(value), flags, count)
        last: bytes | None = None
        end = BUCKET.size + PAGE_HEADER.size
        for element in _leaf(page, lambda start, size: value[start : start + size]):
            if last is not None and element[0] <= last:
                raise EtcdFileError("the keys of a bucket within a page are out of order")
            last = element[0]
            end += LEAF_ELEMENT.size + len(last) + len(element[1])
            yield element
        if end != len(value):
            raise EtcdFileError("a bucket within a page has more bytes than rows")

    # --- trees ------------------------------------------------------------------------------------------------------

    def _tree(self, root: int) -> Iterator[tuple[bytes, bytes, int]]:
        """(key, value, flags) of all leaves below a page, in order."""
        # For each level the children that were not visited yet: the least key that each may begin with, and its page.
        levels: list[Iterator[tuple[bytes, int]]] = [iter([(b"", root)])]
        last: bytes | None = None
        while levels:
            least, number = next(levels[-1], (b"", 0))
            if not number:
                levels.pop()
                continue
            page, read = self._page(number)
            if page.flags == layout.BRANCH_PAGE:
                if len(levels) == _LEVELS_MAX:
                    raise EtcdFileError(f"its tree has more than {_LEVELS_MAX} levels")
                levels.append(iter(_children(page, read, least)))
                continue
            if not page.elements:  # an empty bucket has no page of its own
                raise EtcdFileError(f"page {number} is empty")
            for element in _leaf(page, read):
                key = element[0]
                if key < least or (last is not None and key <= last):
                    raise EtcdFileError(f"the keys of page {number} are out of order")
                last = key
                yield element

    def _page(self, number: int) -> tuple[_Page, ReadAt]:
        """A branch or leaf page that was not read yet, and what reads within it."""
        page_bytes, _, pages, _ = self.meta
        if not _FIRST_PAGE <= number < pages:
            raise EtcdFileError(f"page {number} of {pages} is named")
        start = number * page_bytes
        data = self._exactly(start, page_bytes)
        own_number, flags, count, overflow = PAGE_HEADER.unpack_from(data)
        if own_number != number:
            raise EtcdFileError(f"page {number} has the number {own_number}")
        if flags not in (layout.BRANCH_PAGE, layout.LEAF_PAGE):
            raise EtcdFileError(f"page {number} is no branch and no leaf (flags {flags:#x})")
        if number + overflow >= pages:
            raise EtcdFileError(f"page {number} is longer than the file")
        following = range(number, number + overflow + 1)
        if any(self._seen[each] for each in following):
            raise EtcdFileError(f"page {number} is used twice")
        for each in following:
            self._seen[each] = 1
        page = _Page(number, start, start + len(following) * page_bytes, flags, count)
        if overflow:
            return page, self._exactly
        return page, lambda at, size: data[at - start : at - start + size]

    def _exactly(self, start: int, size: int) -> bytes:
        data = self._read(start, size)
        if len(data) != size:
            raise EtcdFileError("it ends while it is read")
        return data


def _elements_end(page: _Page, size: int) -> int:
    """Where the elements end and the first key begins."""
    end = page.start + PAGE_HEADER.size + page.elements * size
    if end > page.end:
        raise EtcdFileError(f"page {page.number} has room for fewer than {page.elements} elements")
    return end


def _leaf(page: _Page, read: ReadAt) -> Iterator[tuple[bytes, bytes, int]]:
    at = page.start + PAGE_HEADER.size
    next_start = _elements_end(page, LEAF_ELEMENT.size)
    for flags, position, key_bytes, value_bytes in LEAF_ELEMENT.iter_unpack(read(at, next_start - at)):
        start = at + position
        at += LEAF_ELEMENT.size
        size = key_bytes + value_bytes
        if start != next_start or not 0 < key_bytes <= layout.KEY_BYTES_MAX or start + size > page.end:
            raise EtcdFileError(f"an element of page {page.number} lies elsewhere")
        if size > ROW_BYTES_MAX:
            raise EtcdFileError(f"an element of page {page.number} has {size} bytes; {ROW_BYTES_MAX} are allowed")
        if flags & ~layout.BUCKET_ELEMENT:
            raise EtcdFileError(f"an element of page {page.number} has the flags {flags:#x}")
        next_start += size
        row = read(start, size)
        yield row[:key_bytes], row[key_bytes:], flags


def _children(page: _Page, read: ReadAt, least: bytes) -> list[tuple[bytes, int]]:
    """The children of a branch page: the least key that each may begin with, and its page."""
    at = page.start + PAGE_HEADER.size
    next_start = _elements_end(page, BRANCH_ELEMENT.size)
    if not page.elements:
        raise EtcdFileError(f"page {page.number} is empty")
    children = []
    for position, key_bytes, child in BRANCH_ELEMENT.iter_unpack(read(at, next_start - at)):
        start = at + position
        at += BRANCH_ELEMENT.size
        if start != next_start or key_bytes > layout.KEY_BYTES_MAX or start + key_bytes > page.end:
            raise EtcdFileError(f"an element of page {page.number} lies elsewhere")
        if child < _FIRST_PAGE:
            raise EtcdFileError(f"page {page.number} names page {child}")
        next_start += key_bytes
        children.append((read(start, key_bytes), child))
    if children[0][0] < least or any(one[0] >= after[0] for one, after in pairwise(children)):
        raise EtcdFileError(f"the keys of page {page.number} are out of order")
    return children


def _shown(name: bytes) -> str:
    """A name out of the file: short, and on one line."""
    return repr(name[:32])[1:]
