# SPDX-License-Identifier: Apache-2.0
"""The snapshots of etcds that are kept in tests/data/etcd, and what was seen of those etcds."""

import json
import lzma
from functools import cache
from pathlib import Path
from typing import Any

_HERE = Path(__file__).parent / "data" / "etcd"
NAMES = sorted(path.name.removesuffix(".db.xz") for path in _HERE.glob("*.db.xz"))


@cache
def content(name: str) -> bytes:
    """The file, with the checksum at its end."""
    return lzma.decompress((_HERE / f"{name}.db.xz").read_bytes())


def unpacked(name: str, folder: Path) -> Path:
    path = folder / f"{name}.db"
    path.write_bytes(content(name))
    return path


def expected(name: str) -> Any:
    """`seen` and `status`, as tests/data/etcd/make.py.txt wrote them."""
    return json.loads(lzma.decompress((_HERE / f"{name}.expected.json.xz").read_bytes()))
