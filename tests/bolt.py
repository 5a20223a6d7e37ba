# SPDX-License-Identifier: Apache-2.0
"""A small reader of bbolt's files, for tests of what we write: it knows nothing of the code under test.

It insists on what bbolt's own check insists on: both metas are whole, keys ascend, a branch names its children by their
first keys, and every page of the file is reached exactly once.
"""

import struct

PAGE = 4096


def buckets(data: bytes) -> dict[bytes, list[tuple[bytes, bytes]]]:
    """All buckets of a file with their elements, in order."""
    return Bolt(data).buckets()


def levels(data: bytes, name: bytes) -> int:
    """How many pages lie on the way to an element of a bucket; 0 for an inline one."""
    bolt = Bolt(data)
    (root,) = struct.unpack_from("<Q", dict(bolt.elements(bolt.root, 1))[name])
    depth = 0
    while root:
        depth += 1
        _, flags, _, _ = struct.unpack_from("<QHHI", data, root * PAGE)
        root = struct.unpack_from("<Q", data, root * PAGE + 24)[0] if flags == 1 else 0
    return depth


class Bolt:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.reached: list[int] = [0, 1]
        metas = [self._meta(number) for number in (0, 1)]
        assert metas[0][0] + 1 == metas[1][0]  # transaction ids
        assert metas[0][1:] == metas[1][1:]
        _, self.root, freelist, pages = metas[0]
        assert len(data) == pages * PAGE
        number, flags, count, overflow = struct.unpack_from("<QHHI", data, freelist * PAGE)
        assert (number, flags, count, overflow) == (freelist, 0x10, 0, 0)
        self.reached.append(freelist)

    def _meta(self, number: int) -> tuple[int, int, int, int]:
        page = self.data[number * PAGE : (number + 1) * PAGE]
        assert struct.unpack_from("<QHHI", page) == (number, 4, 0, 0)
        fields = struct.unpack_from("<IIIIQQQQQQ", page, 16)
        magic, version, page_size, flags, root, sequence, freelist, pages, transaction, checksum = fields
        assert (magic, version, page_size, flags, sequence) == (0xED0CDAED, 2, PAGE, 0, 0)
        hashed = 14695981039346656037  # FNV-1a, 64 bits
        for byte in page[16:72]:
            hashed = ((hashed ^ byte) * 1099511628211) % 2**64
        assert checksum == hashed
        assert not any(page[80:])
        return transaction, root, freelist, pages

    def buckets(self) -> dict[bytes, list[tuple[bytes, bytes]]]:
        found = {}
        for name, value in self.elements(self.root, 1):
            root, sequence = struct.unpack_from("<QQ", value)
            assert sequence == 0
            if root:
                found[name] = self.elements(root, 0)
            else:
                assert 16 < len(value) <= 16 + PAGE // 4
                found[name] = self._leaf(value[16:], 0, 0)
        assert sorted(self.reached) == list(range(len(self.data) // PAGE))
        self._ascending([name for name, _ in self.elements(self.root, 1)])
        return found

    def elements(self, number: int, flags: int) -> list[tuple[bytes, bytes]]:
        found = self._below(number, flags)
        self._ascending([key for key, _ in found])
        return found

    def _below(self, number: int, flags: int) -> list[tuple[bytes, bytes]]:
        named, kind, count, overflow = struct.unpack_from("<QHHI", self.data, number * PAGE)
        assert named == number
        self.reached += range(number, number + 1 + overflow)
        page = self.data[number * PAGE : (number + 1 + overflow) * PAGE]
        if kind == 2:
            return self._leaf(page, number, flags)
        assert kind == 1
        assert count >= 2
        found = []
        for place in range(16, 16 + 16 * count, 16):
            start, key_bytes, child = struct.unpack_from("<IIQ", page, place)
            key = page[place + start : place + start + key_bytes]
            below = self._below(child, flags)
            assert below[0][0] == key
            found += below
        return found

    def _leaf(self, page: bytes, number: int, flags: int) -> list[tuple[bytes, bytes]]:
        named, kind, count, _ = struct.unpack_from("<QHHI", page)
        assert (named, kind) == (number, 2)
        found = []
        end = 16 + 16 * count
        for place in range(16, 16 + 16 * count, 16):
            marked, start, key_bytes, value_bytes = struct.unpack_from("<IIII", page, place)
            assert marked == flags
            assert place + start == end  # one behind the other
            end += key_bytes + value_bytes
            key_end = place + start + key_bytes
            found.append((page[place + start : key_end], page[key_end : key_end + value_bytes]))
        assert end <= len(page)
        assert not any(page[end:])
        return found

    @staticmethod
    def _ascending(keys: list[bytes]) -> None:
        assert keys == sorted(set(keys))
