# SPDX-License-Identifier: Apache-2.0
"""Finds out the protocol of a new connection by its first bytes: gRPC and the JSON gateway share one port.

An HTTP/2 client begins with a fixed preface, which was chosen so that no HTTP/1 request begins with it. A connection
whose first bytes differ from it, even in one, is handled as HTTP/1. The caller decides how long to wait for them.
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
