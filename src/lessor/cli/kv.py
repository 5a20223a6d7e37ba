# SPDX-License-Identifier: Apache-2.0
"""`lessor put`, `get` and `del`. Same arguments, outputs and exit codes as etcdctl.

Keys and values are byte strings: the shell's bytes reach the server unchanged, whatever the encoding. Each command
makes a request from its arguments (`put_request` and so on, which `txn` uses too), calls, and prints.
"""

import os
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import click

from lessor.api.proto import rpc_pb2 as rpc
from lessor.cli import notation, printing
from lessor.cli.asking import ask_once
from lessor.cli.failure import BAD_ARGS, BAD_FEATURE, Failure
from lessor.cli.lease import decimal_option
from lessor.cli.many import call
from lessor.cli.notation import quote
from lessor.cli.options import INT64, Command, Settings, settings_of

if TYPE_CHECKING:
    from lessor.client._finite import FiniteCalls

KV = "/etcdserverpb.KV/"
DELETE_WARNING_S = 2.0  # time to stop the deletion of a range without --range

ONE_OF_PREFIX_FROM_KEY = "`--prefix` and `--from-key` cannot be set at the same time, choose one"
ONE_KEY_ONLY = "too many arguments, only accept one argument when `--prefix` or `--from-key` is set"
PUT_NEEDS = "put command needs 1 argument and input from stdin or 2 arguments"

# From the values of --order and --sort-by, in capitals, to the numbers in the API.
ORDERS = {"": 0, "ASCEND": 1, "DESCEND": 2}
SORT_TARGETS = {"": 0, "KEY": 0, "VERSION": 1, "CREATE": 2, "MODIFY": 3, "VALUE": 4}


def key_range(args: tuple[str, ...], *, prefix: bool, from_key: bool) -> tuple[bytes, bytes]:
    """The key and range end that the arguments and flags mean. Failure when they exclude each other."""
    from lessor.client import prefix_end

    key = os.fsencode(args[0])
    if len(args) > 1:
        if prefix or from_key:
            raise Failure(BAD_ARGS, ONE_KEY_ONLY)
        return key, os.fsencode(args[1])
    if prefix and key:
        return key, prefix_end(key)
    if prefix or from_key:
        return key or b"\0", b"\0"
    return key, b""


@click.command("put", cls=Command)
@click.argument("args", nargs=-1, metavar="KEY [VALUE]")
@click.option("--lease", "lease_text", default="0", metavar="LEASE_ID", help="Attach the key to this lease.")
@click.option("--prev-kv", is_flag=True, help="Print the previous key and value as well.")
@click.option("--ignore-value", is_flag=True, help="Keep the key's current value.")
@click.option("--ignore-lease", is_flag=True, help="Keep the key's current lease.")
@decimal_option
@click.pass_context
def put(ctx: click.Context, /, args: tuple[str, ...], decimal: bool, **flags: Any) -> None:
    """Write VALUE under KEY. Without VALUE it is read from stdin.

    A VALUE that begins with a dash goes after two dashes: put KEY -- -1
    """
    request = put_request(args, flags, decimal=decimal, stdin=lambda: sys.stdin.buffer.read())
    settings = settings_of(ctx)
    printer = printing.choose(settings.output_format, hexadecimal=settings.hexadecimal, decimal=decimal)
    printing.write(printer.put(call(settings, KV + "Put", request)))


def put_request(
    args: tuple[str, ...], flags: dict[str, Any], *, decimal: bool = False, stdin: Callable[[], bytes] = bytes
) -> rpc.PutRequest:
    """The request of `put`; `stdin` is called when the arguments have no value. Failure for wrong arguments."""
    ignore_value, lease_text = flags["ignore_value"], flags["lease_text"]
    if not args:
        raise Failure(BAD_ARGS, PUT_NEEDS)
    if ignore_value and len(args) > 1:
        raise Failure(BAD_ARGS, "put command needs only 1 argument when 'ignore-value' is set")
    value = b"" if ignore_value else os.fsencode(args[1]) if len(args) > 1 else stdin()
    if not ignore_value and len(args) == 1 and not value:
        raise Failure(BAD_ARGS, PUT_NEEDS)
    try:
        lease_id = notation.lease_id(lease_text, decimal=decimal)
    except ValueError as error:
        expecting = notation.expecting_id(lease_text, decimal=decimal)
        raise Failure(BAD_ARGS, f"bad lease ID ({error}), {expecting}") from None
    return rpc.PutRequest(
        key=os.fsencode(args[0]),
        value=value,
        lease=lease_id,
        prev_kv=flags["prev_kv"],
        ignore_value=ignore_value,
        ignore_lease=flags["ignore_lease"],
    )


@click.command("get", cls=Command)
@click.argument("args", nargs=-1, metavar="KEY [RANGE_END]")
@click.option("--prefix", is_flag=True, help="Get the keys that begin with KEY.")
@click.option("--from-key", is_flag=True, help="Get KEY and all keys after it, in byte order.")
@click.option("--limit", type=INT64, default=0, help="Print at most so many keys.")
@click.option("--rev", type=INT64, default=0, help="Get the state at this revision.")
@click.option("--order", default="", help="ASCEND or DESCEND.")
@click.option("--sort-by", default="", help="CREATE, KEY, MODIFY, VALUE or VERSION.")
@click.option("--keys-only", is_flag=True, help="Get no values.")
@click.option("--count-only", is_flag=True, help="Get the number of keys only (with --write-out=fields).")
@click.option("--print-value-only", is_flag=True, help="Print no keys (with --write-out=simple).")
@click.option("--consistency", default="l", help="l for linearizable, s for serializable.")
@click.option("--min-create-rev", type=INT64, default=0, help="Only keys created at this revision or later.")
@click.option("--max-create-rev", type=INT64, default=0, help="Only keys created at this revision or before.")
@click.option("--min-mod-rev", type=INT64, default=0, help="Only keys last written at this revision or later.")
@click.option("--max-mod-rev", type=INT64, default=0, help="Only keys last written at this revision or before.")
@click.option("--stream", is_flag=True, help="Let the server send the keys piece by piece (not before etcd 3.7).")
@click.pass_context
def get(ctx: click.Context, /, args: tuple[str, ...], **flags: Any) -> None:
    """Print the key KEY, or the keys from KEY up to but not including RANGE_END."""
    request = get_request(args, flags)
    settings = settings_of(ctx)
    if flags["count_only"] and settings.output_format != "fields":
        raise Failure(BAD_ARGS, "--count-only is only for `--write-out=fields`")
    if flags["print_value_only"] and settings.output_format != "simple":
        raise Failure(BAD_ARGS, "print-value-only is only for `--write-out=simple`")
    printer = printing.choose(settings.output_format, hexadecimal=settings.hexadecimal)
    reply = _streamed(settings, request) if flags["stream"] else call(settings, KV + "Range", request)
    printing.write(printer.get(reply, flags["print_value_only"]))


def _streamed(settings: Settings, request: rpc.RangeRequest) -> rpc.RangeResponse:
    """The reply to `request`, by RangeStream. The arguments of `get_stream` are called as the fields are."""

    async def question(client: "FiniteCalls") -> rpc.RangeResponse:
        reply = rpc.RangeResponse()
        arguments = {field.name: getattr(request, field.name) for field in request.DESCRIPTOR.fields}
        async for piece in client.get_stream(**arguments, timeout_s=settings.command_timeout_s):
            reply.MergeFrom(piece)
        return reply

    return ask_once(settings, question)


def get_request(args: tuple[str, ...], flags: dict[str, Any]) -> rpc.RangeRequest:
    """The request of `get`. Failure for wrong arguments and flags."""
    if not args:
        raise Failure(BAD_ARGS, "get command needs one argument as key and an optional argument as range_end")
    if flags["prefix"] and flags["from_key"]:
        raise Failure(BAD_ARGS, ONE_OF_PREFIX_FROM_KEY)
    if flags["keys_only"] and flags["count_only"]:
        raise Failure(BAD_ARGS, "`--keys-only` and `--count-only` cannot be set at the same time, choose one")
    if flags["consistency"] not in ("l", "s"):
        raise Failure(BAD_FEATURE, f"unknown consistency flag {quote(os.fsencode(flags['consistency']))}")
    key, range_end = key_range(args, prefix=flags["prefix"], from_key=flags["from_key"])
    if flags["order"].upper() not in ORDERS:
        raise Failure(BAD_FEATURE, f"bad sort order {flags['order']}")
    if flags["sort_by"].upper() not in SORT_TARGETS:
        raise Failure(BAD_FEATURE, f"bad sort target {flags['sort_by']}")
    for least, most, name in (("min_create_rev", "max_create_rev", "Create"), ("min_mod_rev", "max_mod_rev", "Mod")):
        if flags[most] > 0 and flags[least] > flags[most]:
            raise Failure(BAD_FEATURE, f"getMin{name}Rev(={flags[least]}) > getMax{name}Rev(={flags[most]})")
    return rpc.RangeRequest(
        key=key,
        range_end=range_end,
        limit=flags["limit"],
        revision=max(flags["rev"], 0),
        sort_order=cast("rpc.RangeRequest.SortOrder", ORDERS[flags["order"].upper()]),
        sort_target=cast("rpc.RangeRequest.SortTarget", SORT_TARGETS[flags["sort_by"].upper()]),
        serializable=flags["consistency"] == "s",
        keys_only=flags["keys_only"],
        count_only=flags["count_only"],
        min_create_revision=max(flags["min_create_rev"], 0),
        max_create_revision=max(flags["max_create_rev"], 0),
        min_mod_revision=max(flags["min_mod_rev"], 0),
        max_mod_revision=max(flags["max_mod_rev"], 0),
    )


@click.command("del", cls=Command)
@click.argument("args", nargs=-1, metavar="KEY [RANGE_END]")
@click.option("--prefix", is_flag=True, help="Delete the keys that begin with KEY.")
@click.option("--from-key", is_flag=True, help="Delete KEY and all keys after it, in byte order.")
@click.option("--prev-kv", is_flag=True, help="Print the deleted keys and values as well.")
@click.option("--range", "sure", is_flag=True, help="Delete up to RANGE_END without two seconds to think about it.")
@click.pass_context
def delete(ctx: click.Context, /, args: tuple[str, ...], sure: bool, **flags: Any) -> None:
    """Delete the key KEY, or the keys from KEY up to but not including RANGE_END."""
    request = delete_request(args, flags)
    settings = settings_of(ctx)
    printer = printing.choose(settings.output_format, hexadecimal=settings.hexadecimal)
    if len(args) == 2 and not sure:
        click.echo(
            f"Warning: Keys between {quote(request.key)} and {quote(request.range_end)} will be deleted. "
            "Please interrupt the command within next 2 seconds to cancel. "
            "You can provide `--range` flag to avoid the delay.",
            err=True,
        )
        time.sleep(DELETE_WARNING_S)
    printing.write(printer.delete(call(settings, KV + "DeleteRange", request)))


def delete_request(args: tuple[str, ...], flags: dict[str, Any]) -> rpc.DeleteRangeRequest:
    """The request of `del`. Failure for wrong arguments and flags."""
    if not 1 <= len(args) <= 2:
        raise Failure(BAD_ARGS, "del command needs one argument as key and an optional argument as range_end")
    if flags["prefix"] and flags["from_key"]:
        raise Failure(BAD_ARGS, ONE_OF_PREFIX_FROM_KEY)
    key, range_end = key_range(args, prefix=flags["prefix"], from_key=flags["from_key"])
    return rpc.DeleteRangeRequest(key=key, range_end=range_end, prev_kv=flags["prev_kv"])
