# SPDX-License-Identifier: Apache-2.0
"""Which protocol does a new connection speak? gRPC and the JSON gateway share one port, so its first bytes tell.

An HTTP/2 client opens with a fixed preface, chosen so that no HTTP/1 request begins like it. Whatever differs from it,
even in one byte, is HTTP/1's to judge. How long to wait for the first bytes is the caller's decision.
"""

from typing import Literal

from lessor.wire.frames import PREFACE


def sniff(data: bytes) -> Literal["h2", "h1"] | None:
    """The protocol of the connection whose first bytes are `data` (all of them so far); None: more are needed."""
    if data.startswith(PREFACE):
        return "h2"
    if PREFACE.startswith(data):
        return None
    return "h1"
