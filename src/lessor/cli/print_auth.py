# SPDX-License-Identifier: Apache-2.0
"""Replies about users and roles in each output format. The bytes are etcdctl's.

Not every reply has every format, so the format is checked before anything is asked of a server.
"""

import os
from collections.abc import Iterable

from google.protobuf.message import Message

from lessor.api.proto import auth_pb2 as auth
from lessor.api.proto import rpc_pb2 as rpc
from lessor.cli import print_json
from lessor.cli.failure import BAD_FEATURE, Failure
from lessor.cli.notation import quote
from lessor.cli.options import Settings
from lessor.cli.print_fields import FieldsPrinter
from lessor.cli.terminal import word

_FORMATS = ("simple", "json", "protobuf", "fields")


def check_format(settings: Settings, *, fields: bool = True) -> None:
    """Failure for a format that the reply will not have. `fields`: whether it has that one."""
    asked = settings.output_format
    if asked == "table" or (asked == "fields" and not fields):
        raise Failure(BAD_FEATURE, f"{asked} not supported as output format")
    if asked not in _FORMATS:
        raise Failure(BAD_FEATURE, "unsupported output format")


def show(settings: Settings, reply: Message, simple: bytes, fields: Iterable[str] = ()) -> bytes:
    """The reply in the format of the settings. `simple`: its simple format; `fields`: its fields after the header."""
    if settings.output_format == "simple":
        return simple
    if settings.output_format == "json":
        return print_json.line(print_json.plain(reply))
    if settings.output_format == "protobuf":
        return reply.SerializeToString()
    header = FieldsPrinter(hexadecimal=settings.hexadecimal).header(reply.header)  # type: ignore[attr-defined]
    return "".join(f"{line}\n" for line in (*header, *fields)).encode()


def role_text(settings: Settings, role: str, reply: rpc.AuthRoleGetResponse) -> bytes:
    """What a role may do, in the format of the settings."""
    return show(settings, reply, _permission_lines(role.encode(), reply.perm), _permission_fields(reply.perm))


def _permission_lines(role: bytes, permissions: Iterable[auth.Permission]) -> bytes:
    """The simple format of a role: the keys that it may read, the keys that it may write."""
    permissions = list(permissions)
    lines = [b"Role " + word(role)]
    for title, kinds in ((b"KV Read:", (auth.Permission.READ, auth.Permission.READWRITE)), _WRITE):
        lines.append(title)
        lines += [b"\t" + _range(one.key, one.range_end) for one in permissions if one.permType in kinds]
    return b"".join(line + b"\n" for line in lines)


_WRITE = (b"KV Write:", (auth.Permission.WRITE, auth.Permission.READWRITE))


def _range(key: bytes, range_end: bytes) -> bytes:
    from lessor.client import FROM_KEY, prefix_end

    prefix = key and prefix_end(key) == range_end
    key = word(key)
    if not range_end:
        return key
    shown = b"[%s, <open ended>" % key if range_end == FROM_KEY else b"[%s, %s)" % (key, word(range_end))
    return shown + b" (prefix %s)" % key if prefix else shown


def _permission_fields(permissions: Iterable[auth.Permission]) -> list[str]:
    lines = []
    for one in permissions:
        # etcdctl's accident: two spaces here, one elsewhere.
        lines.append(f'"PermType" :  {auth.Permission.Type.Name(one.permType)}')
        lines += [f'"Key" : {quote(one.key)}', f'"RangeEnd" : {quote(one.range_end)}']
    return lines


def raw(text: str) -> bytes:
    """An argument as the bytes that the shell passed."""
    return os.fsencode(text)
