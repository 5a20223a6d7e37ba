# SPDX-License-Identifier: Apache-2.0
"""How a server shows another one that it can read their log, and the other one that it leads it.

Each process of a cluster draws a nonce, which stands in all its records and nowhere else. So who knows the nonce of the
leader has read the log. The nonce itself is never sent: an HMAC with it as the key is.

A server that follows also vouches for the names in its clients' certificates. Its word holds for one stream of one
connection: the challenge is the leader's, and is drawn for the connection; a connection has each stream number once. So
nobody gains from sending again what was heard, not even over a connection that a proxy shares.
"""

import hashlib
import hmac
import struct
from collections.abc import Sequence


def proof(nonce: bytes, own_nonce: bytes, member_id: int, name: str, urls: Sequence[str]) -> bytes:
    """What a server with that name sends to the leader whose records have `nonce`.

    `own_nonce`: by which its process names what it passes on.
    """
    said = "\0".join((own_nonce.hex(), str(member_id), name, *urls)).encode()
    return hmac.new(nonce, said, hashlib.sha256).digest()


def answer(nonce: bytes, challenge: bytes) -> bytes:
    """What the leader whose records have `nonce` sends back, to show that it is that one."""
    return hmac.new(nonce, b"leads\0" + challenge, hashlib.sha256).digest()


def is_answer(found: bytes, nonce: bytes, challenge: bytes) -> bool:
    """Whether `found` is that."""
    return hmac.compare_digest(found, answer(nonce, challenge))


def reader_answer(nonce: bytes, challenge: bytes) -> bytes:
    """What a server sends to the leader whose records have `nonce`, to show that it can read the log at this moment.

    `proof` does not show that: whoever got one may send it again.
    """
    return hmac.new(nonce, b"reads\0" + challenge, hashlib.sha256).digest()


def is_reader_answer(found: bytes, nonce: bytes, challenge: bytes) -> bool:
    """Whether `found` is that."""
    return hmac.compare_digest(found, reader_answer(nonce, challenge))


def holds(found: bytes, nonce: bytes, own_nonce: bytes, member_id: int, name: str, urls: Sequence[str]) -> bool:
    """Whether `found` is that. Takes the same time for each wrong one."""
    return hmac.compare_digest(found, proof(nonce, own_nonce, member_id, name, urls))


def vouch(nonce: bytes, challenge: bytes, stream_id: int, path: str, name: str) -> bytes:
    """What a server says with a call of a client whose certificate has the common name `name`, as a header's value.

    `nonce`: of the leader. `challenge`: the leader's, on this connection. `stream_id`, `path`: of the call there.
    """
    said = b"caller\0" + challenge + struct.pack(">I", stream_id) + f"{path}\0{name}".encode()
    return hmac.new(nonce, said, hashlib.sha256).hexdigest().encode() + b":" + name.encode().hex().encode()


def vouched_name(found: bytes, nonce: bytes, challenge: bytes, stream_id: int, path: str) -> str | None:
    """The name in what `vouch` has made for that call; None for everything else."""
    try:
        name = bytes.fromhex(found.partition(b":")[2].decode()).decode()
    except ValueError:
        return None
    return name if hmac.compare_digest(found, vouch(nonce, challenge, stream_id, path, name)) else None
