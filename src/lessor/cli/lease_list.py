# SPDX-License-Identifier: Apache-2.0
"""`lessor lease list` with flags: granted and remaining TTL, number of keys and keys, filtered and sorted.

Laws
- Pages are printed as they come, except JSON, which is one line.
- Other servers do not know lessorpb.Leases. They are asked for the ids, then about each lease by itself; one line on
  stderr says so. Their TTLs are whole seconds.
- Without --long the output has the form of the plain `lease list`.

In the simple format a lease is one line: id, granted TTL, remaining time, number of keys, and the keys as they are, or
escaped under --hex.
"""

import sys
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from lessor.api.proto import leases_pb2
from lessor.api.proto import rpc_pb2 as rpc
from lessor.cli import printing
from lessor.cli.asking import ask
from lessor.cli.failure import BAD_CONNECTION
from lessor.cli.notation import hex_escaped, quote
from lessor.cli.options import Settings
from lessor.cli.print_fields import header_lines
from lessor.cli.print_json import base64_text, line, plain
from lessor.cli.printer import Printer, id_text
from lessor.cli.terminal import escaped

if TYPE_CHECKING:
    from lessor.client import AsyncClient

PAGE_LEASES = 10_000
KEYS_MAX = 100  # keys shown of a lease; their number is always there
ORDERS = {"id": 0, "remaining": 1, "keys": 2}


class Wanted(NamedTuple):
    """The values of the flags."""

    prefix: bytes = b""
    expiring_in_s: float = 0.0  # 0: whenever they end
    order: str = "remaining"
    long: bool = True


def show(settings: Settings, wanted: Wanted, printer: Printer, decimal: bool) -> None:
    """Asks and prints. Raises Failure as `ask` does."""

    async def question(client: "AsyncClient") -> None:
        gathered = leases_pb2.LeaseListResponse()
        whole = not wanted.long or settings.output_format == "json"
        first = True
        async for page in pages(client, wanted):
            if whole:
                gathered.MergeFrom(page)
            else:
                printing.write(page_bytes(page, settings, decimal=decimal, first=first))
            first = False
        if not wanted.long:
            statuses = [rpc.LeaseStatus(ID=item.ID) for item in gathered.leases]
            printing.write(printer.leases(rpc.LeaseLeasesResponse(header=gathered.header, leases=statuses)))
        elif whole:
            items = [_item_data(item) for item in gathered.leases]
            printing.write(line({**plain(gathered.header), "leases": items}))

    ask(settings, question, exit_code=BAD_CONNECTION)


async def pages(client: "AsyncClient", wanted: Wanted) -> AsyncIterator[leases_pb2.LeaseListResponse]:
    """The leases that are wanted, from Lessor or another server."""
    from lessor.client import ServerError

    try:
        async for page in client.lease_list(
            key_prefix=wanted.prefix,
            remaining_s_max=wanted.expiring_in_s,
            order=ORDERS[wanted.order],
            limit=PAGE_LEASES,
            keys_limit=KEYS_MAX if wanted.long else 0,
        ):
            yield page
        return
    except ServerError as error:
        if not no_service(error):
            raise
    print("this server has no lists of leases (it is not Lessor): asking about each lease by itself", file=sys.stderr)
    yield await one_by_one(client, wanted)


def no_service(error: Exception) -> bool:
    """Whether the server answered that it does not know lessorpb.Leases."""
    from lessor.client import ServerError

    return isinstance(error, ServerError) and error.code.name == "UNIMPLEMENTED"


async def one_by_one(client: "AsyncClient", wanted: Wanted) -> leases_pb2.LeaseListResponse:
    """The leases that are wanted, from a server with etcd's calls alone: one call for each lease."""
    listed = await client.leases()
    items = []
    for status in listed.leases:
        reply = await client.time_to_live(status.ID, keys=True)
        keys = sorted(reply.keys)
        passes = not wanted.prefix or any(key.startswith(wanted.prefix) for key in keys)
        in_time = not 0 < wanted.expiring_in_s < reply.TTL
        if reply.grantedTTL and passes and in_time:  # without a granted TTL it has ended meanwhile
            left_ms = max(reply.TTL, 0) * 1000
            items.append(
                leases_pb2.LeaseItem(
                    ID=reply.ID, TTL=reply.grantedTTL, remaining_ms=left_ms, key_count=len(keys), keys=keys[:KEYS_MAX]
                )
            )
    items.sort(key=lambda item: (_rank(item, wanted.order), item.ID))
    return leases_pb2.LeaseListResponse(header=listed.header, lease_count=len(listed.leases), leases=items)


def _rank(item: leases_pb2.LeaseItem, order: str) -> int:
    return {"id": 0, "remaining": item.remaining_ms, "keys": -item.key_count}[order]


# --- the output -------------------------------------------------------------------------------------------------


def page_bytes(page: leases_pb2.LeaseListResponse, settings: Settings, *, decimal: bool, first: bool) -> bytes:
    """One page in a format that can be written page by page."""
    if settings.output_format == "protobuf":
        return page.SerializeToString()  # several after each other are one message with all leases
    if settings.output_format == "fields":
        lines = [*header_lines(page.header, settings.hexadecimal)] if first else []
        for item in page.leases:
            shown = id_text(item.ID, decimal=decimal or not settings.hexadecimal)
            lines += [f'"ID" : {shown}', f'"GrantedTTL" : {item.TTL}', f'"RemainingMs" : {item.remaining_ms}']
            lines += [f'"KeyCount" : {item.key_count}', *(f'"Key" : {quote(key)}' for key in item.keys)]
        return "".join(text + "\n" for text in lines).encode()
    rows = [row_bytes(item, hex_escaped if settings.hexadecimal else escaped, decimal=decimal) for item in page.leases]
    return b"".join([head_bytes(decimal) if first else b"", *rows])


def head_bytes(decimal: bool) -> bytes:
    return f"{'LEASE':<{_id_width(decimal)}} {'TTL':>8} {'REMAINING':>11} {'KEYS':>6}\n".encode()


def row_bytes(item: leases_pb2.LeaseItem, show_key: Callable[[bytes], bytes], *, decimal: bool) -> bytes:
    """A lease as one line."""
    ttl, left = f"{item.TTL}s", f"{item.remaining_ms / 1000:.1f}s"
    text = f"{id_text(item.ID, decimal=decimal):<{_id_width(decimal)}} {ttl:>8} {left:>11} {item.key_count:>6}".encode()
    keys = [show_key(key) for key in item.keys]
    if item.key_count > len(keys):
        keys.append(b"...")
    return b"  ".join([text, *([b" ".join(keys)] if keys else [])]) + b"\n"


def _id_width(decimal: bool) -> int:
    return 19 if decimal else 16


def _item_data(item: leases_pb2.LeaseItem) -> dict[str, Any]:
    return {
        "id": item.ID,
        "granted-ttl": item.TTL,
        "remaining-ms": item.remaining_ms,
        "key-count": item.key_count,
        "keys": [base64_text(key) for key in item.keys],
    }
