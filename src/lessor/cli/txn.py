# SPDX-License-Identifier: Apache-2.0
r"""`lessor txn`: reads a transaction from stdin, three paragraphs of lines, and prints its reply. As etcdctl.

    mod("key1") > "0"           comparisons, which must all hold

    put key1 "overwrote-key1"   then these (put, get and del, with their own flags)

    put key1 "created-key1"     otherwise these

Each paragraph ends with an empty line. A comparison is TARGET("KEY") OPERATOR "NUMBER or VALUE"; the targets are
value, version, create, mod and lease (whose number is hexadecimal), the operators =, !=, < and >.
"""

import os
import re
import sys
from collections.abc import Callable
from typing import Any, cast

import click

from lessor.api.proto import rpc_pb2 as rpc
from lessor.cli import kv, notation, printing, words
from lessor.cli.failure import BAD_ARGS, INVALID_INPUT, Failure
from lessor.cli.many import call
from lessor.cli.notation import quote
from lessor.cli.options import Command, read_own, settings_of

OPERATORS = {"=": "EQUAL", "!=": "NOT_EQUAL", ">": "GREATER", "<": "LESS"}
# From the name of a target to the field of a Compare for its number, and the base in which people write the number.
NUMBERS = {
    **dict.fromkeys(("ver", "version"), ("version", 10)),
    **dict.fromkeys(("c", "create"), ("create_revision", 10)),
    **dict.fromkeys(("m", "mod"), ("mod_revision", 10)),
    "lease": ("lease", 16),
}
TARGETS = {"version": "VERSION", "create_revision": "CREATE", "mod_revision": "MOD", "lease": "LEASE"}

_OPERATOR = re.compile(r"\)\s*(\S+)")


@click.command("txn", cls=Command)
@click.argument("args", nargs=-1, metavar="")
@click.option("-i", "--interactive", is_flag=True, help="Say what comes next.")
@click.pass_context
def txn(ctx: click.Context, args: tuple[str, ...], interactive: bool) -> None:
    """Read comparisons, requests for when they hold, and requests for when not; carry out one or the other.

    Three paragraphs on stdin, each closed with an empty line:

    \b
        mod("key1") > "0"
    \b
        put key1 "overwrote-key1"
    \b
        put key1 "created-key1"
        put key2 "some extra key"
    """
    if args:
        raise Failure(BAD_ARGS, "txn command does not accept argument")
    settings = settings_of(ctx)
    printer = printing.choose(settings.output_format, hexadecimal=settings.hexadecimal)

    def paragraph(title: str, read: Callable[[str], Any]) -> list[Any]:
        if interactive:
            printing.write(f"{title}:\n".encode())
        return [read(line) for line in _paragraph()]

    request = rpc.TxnRequest(
        compare=paragraph("compares", comparison),
        success=paragraph("success requests (get, put, del)", operation),
        failure=paragraph("failure requests (get, put, del)", operation),
    )
    printing.write(printer.txn(call(settings, kv.KV + "Txn", request)))


def _paragraph() -> Any:
    """The lines of stdin up to an empty one; each is read only after the one before was understood."""
    while True:
        raw = sys.stdin.buffer.readline()
        if not raw.endswith(b"\n"):
            raise Failure(INVALID_INPUT, "EOF")
        line = os.fsdecode(raw).strip()
        if not line:
            return
        yield line


def comparison(line: str) -> rpc.Compare:
    """The comparison of a line. Failure when the line is none."""
    target, paren, rest = line.partition("(")
    if not paren:
        raise Failure(INVALID_INPUT, f"malformed comparison: {line}")
    key = sign = value = ""
    try:
        key, rest = words.quoted(rest)
        match = _OPERATOR.match(rest)
        if match is None:
            raise ValueError
        sign, rest = match[1], rest[match.end() :]
        value, _ = words.quoted(rest)
    except ValueError:
        read = f"{target}({quote(os.fsencode(key))}) {sign} {quote(os.fsencode(value))}"
        raise Failure(INVALID_INPUT, f"malformed comparison: {line}; got {read}") from None
    if target not in NUMBERS and target not in ("val", "value"):
        raise Failure(INVALID_INPUT, f"malformed comparison: {line} (unknown target {target})")
    if sign not in OPERATORS:
        # etcdctl crashes here.
        raise Failure(INVALID_INPUT, f"malformed comparison: {line} (unknown operator {sign}: use =, !=, < or >)")
    result = cast("rpc.Compare.CompareResult", OPERATORS[sign])
    if target not in NUMBERS:
        return rpc.Compare(target="VALUE", result=result, key=os.fsencode(key), value=os.fsencode(value))
    name, base = NUMBERS[target]
    try:
        number: dict[str, Any] = {name: notation.int64(value, base)}
    except ValueError:
        raise Failure(INVALID_INPUT, f"invalid txn compare request: {line}") from None
    return rpc.Compare(
        target=cast("rpc.Compare.CompareTarget", TARGETS[name]), result=result, key=os.fsencode(key), **number
    )


def operation(line: str) -> rpc.RequestOp:
    """The put, get or del of a line, with the flags of the command of that name. Failure when the line is none."""
    try:
        said = words.split(line)
    except ValueError as error:
        raise Failure(INVALID_INPUT, str(error)) from None
    if len(said) < 2:
        raise Failure(INVALID_INPUT, f"invalid txn compare request: {line}")
    names = [name for name in ("put", "get", "del") if name.startswith(said[0])]
    if len(names) != 1:
        raise Failure(INVALID_INPUT, f"invalid txn request: {line}")
    command = {"put": kv.put, "get": kv.get, "del": kv.delete}[names[0]]
    try:
        flags = read_own(command, said[1:])
    except Failure:
        raise Failure(INVALID_INPUT, f"invalid txn request: {line}") from None
    args = flags.pop("args")
    if names == ["put"]:
        return rpc.RequestOp(request_put=kv.put_request(args, flags, decimal=flags["decimal"]))
    if names == ["get"]:
        return rpc.RequestOp(request_range=kv.get_request(args, flags))
    return rpc.RequestOp(request_delete_range=kv.delete_request(args, flags))
