# SPDX-License-Identifier: Apache-2.0
"""Random damage to files that real etcds have written: an error in one line, or what the file says; nothing else.

Nothing of a file's size is read more than twice, so no damage makes the reader go on for ever.
"""

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lessor.durable import etcd_snapshot
from lessor.durable.engine import DataDirError
from lessor.durable.file_engine import FileEngine
from lessor.etcd_file import layout
from lessor.etcd_file.reader import EtcdFileError
from lessor.state.machine import Identity
from lessor.state.replay import restore
from tests.etcd_files import NAMES, content
from tests.etcd_pages import PAGE, Reading

WHOLE = {name: content(name)[: -layout.CHECKSUM_BYTES] for name in NAMES}
names = st.sampled_from(NAMES)


def check_text(error: Exception) -> None:
    assert str(error).isprintable()
    assert 10 < len(str(error)) < 300


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A file of an etcd with a few bytes changed, many of them where pages begin, or pages in each other's place."""
    data = bytearray(WHOLE[draw(names)])
    pages = len(data) // PAGE
    for _ in range(draw(st.integers(1, 6))):
        page = draw(st.integers(0, pages - 1))
        kind = draw(st.sampled_from(["head", "anywhere", "anywhere", "swap", "copy", "zero"]))
        if kind in ("head", "anywhere"):
            at = page * PAGE + draw(st.integers(0, 80 if kind == "head" else PAGE - 1))
            data[at] ^= 1 << draw(st.integers(0, 7)) if draw(st.booleans()) else draw(st.integers(1, 255))
            continue
        other = draw(st.integers(0, pages - 1))
        here, there = slice(page * PAGE, (page + 1) * PAGE), slice(other * PAGE, (other + 1) * PAGE)
        if kind == "swap":
            data[here], data[there] = data[there], data[here]
        else:
            data[here] = data[there] if kind == "copy" else bytes(PAGE)
    return bytes(data)


@given(damaged())
@settings(max_examples=300, deadline=None)
def test_damage_is_an_error_or_no_matter(data: bytes) -> None:
    try:
        reading = Reading(data)
    except EtcdFileError as error:
        check_text(error)
        return
    assert reading.bytes_read <= 2 * len(data)
    order = [change[:2] for change in reading.changes]
    assert order == sorted(set(order))
    for revision, _, key, value, created, version, _ in reading.changes:
        assert key
        assert (created, version) == (0, 0) if value is None else 0 < created <= revision


@given(names, st.data())
@settings(max_examples=40, deadline=None)
def test_a_snapshot_with_any_byte_changed_or_missing_is_refused(name: str, data: st.DataObject) -> None:
    whole = content(name)
    at = data.draw(st.integers(0, len(whole) - 1))
    if data.draw(st.booleans()):
        spoilt = whole[:at]
    else:
        spoilt = whole[:at] + bytes([whole[at] ^ data.draw(st.integers(1, 255))]) + whole[at + 1 :]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "saved.db")
        path.write_bytes(spoilt)
        with pytest.raises(DataDirError) as raised:
            etcd_snapshot.restore(path, Path(folder, "new"))
        check_text(raised.value)
        if spoilt != whole[: -layout.CHECKSUM_BYTES]:  # which is whole, and `status` takes it without a checksum
            with pytest.raises(DataDirError) as raised:
                etcd_snapshot.status(path)
            check_text(raised.value)
        assert sorted(each.name for each in Path(folder).iterdir()) == ["saved.db"]


@given(damaged())
@settings(max_examples=30, deadline=None)
def test_a_restore_without_a_checksum_makes_a_whole_directory_or_none(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path, new = Path(folder, "db"), Path(folder, "new")
        path.write_bytes(data)
        try:
            restored = etcd_snapshot.restore(path, new, skip_checksum=True)
        except DataDirError as error:
            check_text(error)
            assert not new.exists()
            return
        engine = FileEngine(new, sync=False)
        meta = engine.open((1, 1))
        machine = restore(Identity(meta.cluster_id, meta.member_id, meta.term + 1), engine.load())
        engine.close()
        assert machine.revision == restored.revision
        assert len(machine.leases) == restored.leases
