# SPDX-License-Identifier: Apache-2.0
"""What is written is what bbolt expects, for trees of every shape: the reader of tests/bolt.py insists on it."""

import io
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lessor.etcd_file.writer import FileWriter
from tests import bolt

Elements = list[tuple[bytes, bytes]]


def written(**named: Elements) -> bytes:
    """A file with these buckets."""
    file = io.BytesIO()
    writer = FileWriter(file)
    for name in sorted(named):
        writer.bucket(name.encode(), named[name])
    assert writer.finish() == len(file.getvalue()) == file.tell()
    return file.getvalue()


def read_back(**named: Elements) -> bytes:
    data = written(**named)
    assert bolt.buckets(data) == {name.encode(): elements for name, elements in named.items()}
    return data


def test_a_file_without_buckets_and_empty_buckets() -> None:
    assert bolt.buckets(written()) == {}
    read_back(a=[], b=[])


@pytest.mark.parametrize("size", [0, 1, 975, 976, 977, 1_024, 4_040, 4_047, 4_048, 4_049, 4_096, 8_143, 8_144, 8_145])
@pytest.mark.parametrize("count", [1, 2, 3, 300])
def test_sizes_around_the_ends_of_pages(size: int, count: int) -> None:
    """A leaf of one element has 16 bytes of header, 16 of the element's head, its key and its value."""
    elements = [(b"%016d" % number, b"\xff" * size) for number in range(count)]
    read_back(big=elements, small=[(b"k", b"v")])


def test_a_large_value_leaves_the_rest_of_its_last_page_to_the_next_ones() -> None:
    elements = [(b"%04d" % number, b"v" * (1_500_000 if number % 5 == 0 else 10)) for number in range(20)]
    data = read_back(key=elements)
    assert len(data) < 4 * (1_500_000 + 2 * 4_096) + 6 * 4_096


def test_pages_are_filled() -> None:
    """127 elements of 32 bytes fill a leaf but for its header."""
    elements = [(b"%016d" % number, b"") for number in range(127 * 100)]
    data = read_back(key=elements)
    # Two metas, the list of free pages, the leaves, one branch (each child takes 32 bytes of it), the root of all.
    assert len(data) == (3 + 100 + 1 + 1) * 4_096
    # 53 elements of 77 bytes are a byte too many: no leaf goes on over a second page for that.
    data = read_back(key=[(b"%016d" % number, b"v" * 45) for number in range(53)])
    assert len(data) == (3 + 2 + 1 + 1) * 4_096


@pytest.mark.parametrize(
    ("count", "levels_min", "levels_max"),
    [(1, 1, 1), (4, 1, 1), (5, 2, 2), (16, 2, 3), (17, 3, 3), (64, 3, 4), (65, 4, 4), (257, 5, 6), (1_025, 6, 8)],
)
def test_trees_of_several_levels(count: int, levels_min: int, levels_max: int) -> None:
    """With keys of 1,000 bytes a leaf has four elements. A branch has two children at least, and four at most."""
    elements = [(b"%01000d" % number, b"v") for number in range(count)]
    data = read_back(key=elements, other=[(b"k", b"v" * 2_000)])
    assert levels_min <= bolt.levels(data, b"key") <= levels_max
    assert bolt.levels(data, b"other") == 1


def test_keys_longer_than_a_page_lead_to_branches_longer_than_a_page() -> None:
    """Names of users may be that long."""
    elements = [(b"%032768d" % number, b"v") for number in range(40)]
    data = read_back(users=elements)
    assert bolt.levels(data, b"users") >= 3


def test_many_buckets_make_a_tree_of_buckets() -> None:
    read_back(**{f"bucket{number:04d}": [(b"k", b"v" * 200)] for number in range(500)})


keys = st.binary(min_size=1, max_size=60) | st.binary(min_size=1_000, max_size=6_000)
values = st.binary(max_size=100) | st.integers(3_900, 4_200).map(bytes) | st.integers(0, 20_000).map(bytes)


@settings(deadline=None, max_examples=200)
@given(st.dictionaries(keys, values, max_size=60), st.integers(0, 400), st.integers(0, 2**32))
def test_any_elements_come_back(elements: dict[bytes, bytes], more: int, seed: int) -> None:
    rng = random.Random(seed)
    elements = elements | {b"%d" % number: bytes(rng.choice((0, 30, 300))) for number in range(more)}
    read_back(first=[], second=sorted(elements.items()))
