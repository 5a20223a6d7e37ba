# SPDX-License-Identifier: Apache-2.0
"""The reader of bbolt's pages: one number wrong at a time, each is found, and named in one line."""

import struct
from collections.abc import Callable

import pytest

from lessor.etcd_file import layout, reader
from lessor.etcd_file.reader import BoltFile, EtcdFileError
from tests.etcd_files import NAMES, content, expected
from tests.etcd_pages import PAGE, Pages, Reading, changed, small_file

WHOLE = {name: content(name)[: -layout.CHECKSUM_BYTES] for name in NAMES}
FILE = WHOLE["v3.7"]  # its bucket `key` has three levels


def top(pages: Pages) -> int:
    """The root of bucket `key`, a branch page."""
    page = pages.bucket_root(b"key")
    assert pages.header(page)[1] == layout.BRANCH_PAGE
    return page


def first_leaf(pages: Pages) -> int:
    page = top(pages)
    while pages.header(page)[1] == layout.BRANCH_PAGE:
        page = pages.element(page, 0)[2]
    return page


def below(pages: Pages, page: int) -> list[int]:
    """All pages of a tree."""
    if pages.header(page)[1] == layout.LEAF_PAGE:
        return [page]
    children = [pages.element(page, index)[2] for index in range(pages.header(page)[2])]
    return [page, *(each for child in children for each in below(pages, child))]


def long_leaf(pages: Pages) -> int:
    """A leaf page with overflow."""
    return next(page for page in below(pages, top(pages)) if pages.header(page)[3])


def swap_children(pages: Pages) -> None:
    first, second = (pages.element(top(pages), index)[2] for index in (0, 1))
    pages.set_element(top(pages), 0, child=second)
    pages.set_element(top(pages), 1, child=first)


def raise_branch_key(pages: Pages) -> None:
    """Above the first key of its child, and below the next one."""
    at = pages.key_at(top(pages), 1)
    assert pages.data[at + 16] < 255
    pages.data[at + 16] += 1  # of 17 bytes, the last ones number the changes of a revision


def repeat_key(pages: Pages, page: int) -> None:
    """Its second key is its first one again."""
    first, second = pages.key_at(page, 0), pages.key_at(page, 1)
    pages.data[second : second + 17] = pages.data[first : first + 17]


@pytest.mark.parametrize("name", NAMES)
def test_a_whole_file(name: str) -> None:
    reading = Reading(WHOLE[name])
    seen = expected(name)["seen"]
    assert (reading.content.revision, reading.content.compact_revision) == (seen["revision"], seen["compact_revision"])
    newer = [change for change in reading.changes if change[0] > seen["compact_revision"]]
    assert [(change[0], change[2].decode("latin-1")) for change in newer] == [
        (pair[3], pair[0]) for _, pair, _ in seen["events"]
    ]
    assert not reading.content.file.one_meta
    assert reading.bytes_read <= 2 * len(WHOLE[name])


def test_the_kept_files_have_what_the_tests_are_about() -> None:
    pages = Pages(FILE)
    assert pages.header(pages.element(top(pages), 0)[2])[1] == layout.BRANCH_PAGE
    assert long_leaf(pages)
    assert pages.bucket_root(b"auth") == 0  # within the page


Change = Callable[[Pages], object]
WRONG: list[tuple[str, Change]] = [
    # metas
    ("checksums of its meta pages", lambda p: p.set_metas(checksum=1)),
    ("does not begin as", lambda p: p.set_metas(magic=1)),
    ("other byte order", lambda p: p.set_metas(magic=layout.MAGIC_BIG_ENDIAN)),
    ("version 3 of bbolt's format", lambda p: p.set_metas(version=3)),
    ("its pages have 100 bytes", lambda p: p.set_metas(page_bytes=100)),
    ("its pages have 0 bytes", lambda p: p.set_metas(page_bytes=0)),
    ("its pages have 4095 bytes", lambda p: p.set_metas(page_bytes=4095)),
    ("cut short", lambda p: p.set_metas(page_bytes=2 * PAGE)),
    ("cut short", lambda p: p.set_metas(pages=p.count + 1)),
    ("cut short", lambda p: p.set_metas(pages=2**64 - 1)),
    ("its root is page 0", lambda p: p.set_metas(root=0)),
    ("its root is page 1", lambda p: p.set_metas(root=1)),
    ("its root is page", lambda p: p.set_metas(root=p.count)),
    ("its root is page", lambda p: p.set_metas(root=2**64 - 1)),
    ("beside the buckets is none", lambda p: p.set_metas(root=first_leaf(p))),
    # headers of pages
    ("has the number", lambda p: p.set_header(first_leaf(p), id=1)),
    ("no branch and no leaf", lambda p: p.set_header(first_leaf(p), flags=layout.FREELIST_PAGE)),
    ("no branch and no leaf", lambda p: p.set_header(first_leaf(p), flags=layout.META_PAGE)),
    ("no branch and no leaf", lambda p: p.set_header(first_leaf(p), flags=layout.LEAF_PAGE | layout.BRANCH_PAGE)),
    ("no branch and no leaf", lambda p: p.set_header(first_leaf(p), flags=0)),
    ("lies elsewhere", lambda p: p.set_header(first_leaf(p), flags=layout.BRANCH_PAGE)),
    ("longer than the file", lambda p: p.set_header(first_leaf(p), overflow=p.count)),
    ("longer than the file", lambda p: p.set_header(first_leaf(p), overflow=2**32 - 1)),
    ("used twice", lambda p: p.set_header(first_leaf(p), overflow=p.count - first_leaf(p) - 1)),
    ("room for fewer than 65535", lambda p: p.set_header(first_leaf(p), count=65535)),
    ("lies elsewhere", lambda p: p.set_header(first_leaf(p), count=p.header(first_leaf(p))[2] - 1)),
    ("is empty", lambda p: p.set_header(first_leaf(p), count=0)),
    ("is empty", lambda p: p.set_header(top(p), count=0)),
    ("is empty", lambda p: p.set_header(p.root, count=0)),
    ("lies elsewhere", lambda p: p.set_header(long_leaf(p), overflow=0)),
    # children of branch pages
    ("names page 0", lambda p: p.set_element(top(p), 0, child=0)),
    ("names page 1", lambda p: p.set_element(top(p), 0, child=1)),
    ("is named", lambda p: p.set_element(top(p), 0, child=p.count)),
    ("is named", lambda p: p.set_element(top(p), 0, child=2**64 - 1)),
    ("used twice", lambda p: p.set_element(top(p), 0, child=top(p))),
    ("used twice", lambda p: p.set_element(p.element(top(p), 0)[2], 0, child=top(p))),
    ("used twice", lambda p: p.set_element(top(p), 0, child=p.root)),
    ("used twice", lambda p: p.set_element(top(p), 0, child=p.element(top(p), 1)[2])),
    ("out of order", swap_children),
    ("out of order", raise_branch_key),
    ("out of order", lambda p: repeat_key(p, top(p))),
    ("out of order", lambda p: repeat_key(p, first_leaf(p))),
    ("has the number", lambda p: p.set_element(top(p), 0, child=long_leaf(p) + 1)),
    ("lies elsewhere", lambda p: p.set_element(top(p), 0, pos=1)),
    ("lies elsewhere", lambda p: p.set_element(top(p), 0, pos=2**32 - 1)),
    ("lies elsewhere", lambda p: p.set_element(top(p), 0, key_bytes=0)),
    ("lies elsewhere", lambda p: p.set_element(top(p), 1, key_bytes=2**32 - 1)),
    # elements of leaf pages
    ("lies elsewhere", lambda p: p.set_element(first_leaf(p), 0, pos=1)),
    ("lies elsewhere", lambda p: p.set_element(first_leaf(p), 1, pos=2**32 - 1)),
    ("lies elsewhere", lambda p: p.set_element(first_leaf(p), 0, key_bytes=0)),
    ("lies elsewhere", lambda p: p.set_element(first_leaf(p), 1, key_bytes=2**32 - 1)),
    ("lies elsewhere", lambda p: p.set_element(first_leaf(p), 0, value_bytes=2**32 - 1)),
    ("lies elsewhere", lambda p: p.set_element(first_leaf(p), 0, value_bytes=0)),
    ("has the flags", lambda p: p.set_element(first_leaf(p), 0, flags=2)),
    ("has a bucket in it", lambda p: p.set_element(first_leaf(p), 0, flags=layout.BUCKET_ELEMENT)),
    # buckets
    ("beside the buckets is none", lambda p: p.set_element(p.root, 0, flags=0)),
    ("is named", lambda p: p.set_bucket_root(b"key", p.count)),
    ("is named", lambda p: p.set_bucket_root(b"key", 1)),
    ("used twice", lambda p: p.set_bucket_root(b"key", p.root)),
    ("used twice", lambda p: p.set_bucket_root(b"lease", top(p))),
    ("has 16 bytes", lambda p: p.set_bucket_root(b"key", 0)),
]


@pytest.mark.parametrize(("text", "change"), WRONG, ids=[f"{i}-{text[:20]}" for i, (text, _) in enumerate(WRONG)])
def test_what_is_wrong_is_found(text: str, change: Change) -> None:
    with pytest.raises(EtcdFileError) as raised:
        Reading(changed(FILE, change))
    assert text in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("field", "value"), [("flags", 1), ("flags", 0), ("overflow", 1), ("count", 0), ("count", 1), ("count", 9)]
)
def test_a_bucket_within_a_page(field: str, value: int) -> None:
    pages = Pages(FILE)
    _, at = pages.bucket_at(b"auth")  # of two rows
    forms = {"flags": (8, "<H"), "count": (10, "<H"), "overflow": (12, "<I")}
    offset, form = forms[field]
    struct.pack_into(form, pages.data, at + layout.BUCKET.size + offset, value)
    with pytest.raises(EtcdFileError):
        Reading(bytes(pages.data))


@pytest.mark.parametrize("size", [0, 1, 15, 16, 31])
def test_a_bucket_that_is_too_short(size: int) -> None:
    """Of the last bucket in the page, whose value may end anywhere."""
    pages = Pages(FILE)
    index, at = pages.bucket_at(b"meta")
    assert index == pages.header(pages.root)[2] - 1
    struct.pack_into("<Q", pages.data, at, 0)
    pages.set_element(pages.root, index, value_bytes=size)
    with pytest.raises(EtcdFileError, match="bytes"):
        Reading(bytes(pages.data))


@pytest.mark.parametrize("bad", [0, 1])
def test_one_damaged_meta_leaves_the_other(bad: int) -> None:
    whole = Reading(FILE)
    for field in ("checksum", "magic", "version"):
        reading = Reading(changed(FILE, lambda pages, field=field: pages.set_meta(bad, **{field: 5})))  # type: ignore[misc]
        assert reading.content.file.one_meta
        assert (reading.changes, reading.leases) == (whole.changes, whole.leases)
    torn = bytearray(FILE)
    torn[bad * PAGE : (bad + 1) * PAGE] = bytes(PAGE)
    assert Reading(bytes(torn)).changes == whole.changes


def test_the_meta_with_the_newer_transaction_counts() -> None:
    for newer in (0, 1):
        data = changed(FILE, lambda pages, newer=newer: pages.set_meta(1 - newer, root=1, transaction=1))  # type: ignore[misc]
        assert Reading(data).changes == Reading(FILE).changes


@pytest.mark.parametrize("page_bytes", [1_024, 4_096, 16_384, 65_536])
def test_pages_of_other_sizes(page_bytes: int) -> None:
    """As bbolt has them on machines whose own pages have that size."""
    meta = {b"consistent_index": bytes(7) + b"\x05"}
    data = small_file(page_bytes, {b"key": {}, b"meta": meta, b"members": {b"1f": b"{}"}})
    for spoilt in (False, True):
        if spoilt:
            data = bytes(page_bytes) + data[page_bytes:]  # the size stands in the other meta
        content = Reading(data).content
        assert (content.index, content.member_count, content.file.one_meta) == (5, 1, spoilt)
        assert content.file.size_bytes == 3 * page_bytes


def test_cut_short_anywhere() -> None:
    for pages in range(len(FILE) // PAGE):
        for size in (pages * PAGE - 1, pages * PAGE, pages * PAGE + 1, pages * PAGE + layout.CHECKSUM_BYTES):
            with pytest.raises(EtcdFileError):
                Reading(FILE[: max(size, 0)])


def test_a_file_that_becomes_shorter_while_it_is_read() -> None:
    with pytest.raises(EtcdFileError, match="ends while it is read"):
        dict(BoltFile(lambda at, size: FILE[: 2 * PAGE][at : at + size], len(FILE)).buckets())


def test_a_file_may_be_longer_than_what_is_used() -> None:
    assert Reading(FILE + bytes(10 * PAGE)).changes == Reading(FILE).changes


def test_a_tree_of_too_many_levels() -> None:
    """Branch pages in a row, each with one child."""
    pages = Pages(FILE + bytes(100 * PAGE))
    first = len(FILE) // PAGE
    pages.set_metas(pages=pages.count)
    pages.set_bucket_root(b"key", first)
    for page in range(first, pages.count):
        pages.set_header(page, id=page, flags=layout.BRANCH_PAGE, count=1)
        pages.set_element(page, 0, pos=layout.BRANCH_ELEMENT.size, key_bytes=0, child=page + 1)
    with pytest.raises(EtcdFileError, match="more than 64 levels"):
        Reading(bytes(pages.data))


def test_an_element_that_would_fill_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "ROW_BYTES_MAX", 10_000)
    with pytest.raises(EtcdFileError, match="are allowed"):
        Reading(FILE)


def test_fnv() -> None:
    """The vectors that its authors have published."""
    vectors = {b"": 0xCBF29CE484222325, b"a": 0xAF63DC4C8601EC8C, b"foobar": 0x85944171F73967E8}
    assert {data: layout.fnv64a(data) for data in vectors} == vectors
