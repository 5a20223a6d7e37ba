# SPDX-License-Identifier: Apache-2.0
"""For the commands about servers: asking each endpoint by itself, and writing figures and tables."""

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lessor.cli.asking import ask_once
from lessor.cli.failure import BAD_FEATURE, Failure
from lessor.cli.options import Settings

if TYPE_CHECKING:
    from google.protobuf.message import Message

CLUSTER = "/etcdserverpb.Cluster/"
MAINTENANCE = "/etcdserverpb.Maintenance/"


def one_by_one(settings: Settings, cluster: bool) -> list[Settings]:
    """The settings for each endpoint alone; with `cluster`, for each client URL of each member."""
    endpoints: Sequence[str] = settings.endpoints
    if cluster:
        from lessor.api.proto import rpc_pb2 as rpc

        reply: Any = call(settings, CLUSTER + "MemberList", rpc.MemberListRequest(linearizable=True))
        endpoints = [url for member in reply.members for url in member.clientURLs]
    return [dataclasses.replace(settings, endpoints=(endpoint,)) for endpoint in endpoints]


def call(settings: Settings, path: str, request: "Message") -> Any:
    """One unary call; its reply, or Failure."""

    return ask_once(settings, lambda calls: calls.call(path, request))


def check_format(settings: Settings, *formats: str) -> str:
    """The output format, checked before anything is asked; Failure when the command does not have it."""
    chosen = settings.output_format
    if chosen in formats:
        return chosen
    known = chosen in ("simple", "json", "fields", "table", "protobuf")
    text = f"{chosen} not supported as output format" if known else "unsupported output format"
    raise Failure(BAD_FEATURE, text)


def size_text(size: int) -> str:
    """Bytes as people read them: 29 kB, 2.1 GB."""
    if size < 10:
        return f"{size} B"
    power = min(int(math.log10(size)) // 3, 6)
    value = math.floor(size / 1000**power * 10 + 0.5) / 10
    return f"{value:.{0 if value >= 10 else 1}f} {('B', 'kB', 'MB', 'GB', 'TB', 'PB', 'EB')[power]}"


def took_text(duration_s: float) -> str:
    """A duration as Go writes it."""
    value, unit = (duration_s, "s") if duration_s >= 1 else (duration_s * 1e3, "ms")
    if value < 1:
        value, unit = value * 1e3, "µs"
    return f"{value:.6f}".rstrip("0").rstrip(".") + unit


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> bytes:
    """A table with borders: titles in capitals and centred, cells at the right."""
    titles = [title.upper() for title in header]
    cells = [[cell.strip() for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(titles, *cells, strict=True)]
    top, rule, bottom = (
        ends[0] + ends[1].join("─" * (width + 2) for width in widths) + ends[2] for ends in ("┌┬┐", "├┼┤", "└┴┘")
    )
    centred = [
        " " * ((width - len(title)) // 2) + title + " " * ((width - len(title) + 1) // 2)
        for title, width in zip(titles, widths, strict=True)
    ]
    right = [[cell.rjust(width) for cell, width in zip(row, widths, strict=True)] for row in cells]
    lines = [top, *(f"│ {' │ '.join(row)} │" for row in (centred, *right)), bottom]
    if rows:
        lines.insert(2, rule)
    return "".join(line + "\n" for line in lines).encode()
