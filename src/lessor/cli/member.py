# SPDX-License-Identifier: Apache-2.0
"""`lessor member`: list, add, remove, update, promote. Same arguments, outputs and exit codes as etcdctl.

etcdctl refuses a format that a reply does not have only after it has made the change; here it is refused before.
"""

import os
from typing import Any

import click

from lessor.cli import notation, printing
from lessor.cli.endpoint import any_arguments
from lessor.cli.failure import BAD_ARGS, BAD_FEATURE, Failure
from lessor.cli.many import CLUSTER, call, check_format, table
from lessor.cli.notation import quote
from lessor.cli.options import Command, Group, Settings, settings_of
from lessor.cli.print_fields import header_lines
from lessor.cli.print_json import line, plain
from lessor.cli.terminal import word_text

CHANGE_FORMATS = ("simple", "json", "protobuf")
peer_urls_option = click.option("--peer-urls", default="", metavar="LIST", help="The member's peer URLs, with commas.")
id_argument = click.argument("args", nargs=-1, metavar="MEMBER_ID")


def _id(args: tuple[str, ...]) -> int:
    if len(args) != 1:
        raise Failure(BAD_ARGS, "member ID is not provided")
    try:
        return notation.uint64(args[0])
    except ValueError as error:
        raise Failure(BAD_ARGS, f"bad member ID arg ({error}), expecting ID in Hex") from None


def _json(settings: Settings, reply: Any) -> bytes:
    data = plain(reply)
    if settings.hexadecimal:
        members = [*data.get("members", ()), *([data["member"]] if "member" in data else ())]
        for holder, names in [
            (data["header"], ("cluster_id", "member_id")),
            *((member, ("ID",)) for member in members),
        ]:
            for name in names:
                holder[name] = f"{holder[name]:x}"
    return line(data)


def _write(settings: Settings, reply: Any, sentence: str) -> None:
    output = settings.output_format
    if output == "json":
        printing.write(_json(settings, reply))
    elif output == "protobuf":
        printing.write(reply.SerializeToString())
    else:
        printing.write(sentence.encode())


@click.command("list", cls=Command)
@any_arguments
@click.option("--consistency", default="l", help="l for linearizable, s for serializable.")
@click.pass_context
def list_(ctx: click.Context, args: tuple[str, ...], consistency: str) -> None:
    """List the members."""
    from lessor.api.proto import rpc_pb2 as rpc

    if consistency not in ("l", "s"):
        raise Failure(BAD_FEATURE, f"unknown consistency flag {quote(os.fsencode(consistency))}")
    settings = settings_of(ctx)
    output = check_format(settings, "simple", "json", "fields", "table", "protobuf")
    reply = call(settings, CLUSTER + "MemberList", rpc.MemberListRequest(linearizable=consistency == "l"))
    rows = [
        [
            f"{member.ID:x}",
            "started" if member.name else "unstarted",
            word_text(member.name),
            word_text(",".join(member.peerURLs)),
            word_text(",".join(member.clientURLs)),
            "true" if member.isLearner else "false",
        ]
        for member in reply.members
    ]
    if output == "table":
        printing.write(table(("ID", "status", "name", "peer addrs", "client addrs", "is learner"), rows))
    elif output == "fields":
        printing.write(_fields(settings, reply))
    else:
        _write(settings, reply, "".join(", ".join(row) + "\n" for row in rows))


def _fields(settings: Settings, reply: Any) -> bytes:
    lines = [*header_lines(reply.header, settings.hexadecimal)]
    for member in reply.members:
        number = f"{member.ID:x}" if settings.hexadecimal else str(member.ID)
        lines += [f'"ID" : {number}', f'"Name" : {quote(member.name.encode())}']
        lines += [f'"PeerURL" : {quote(url.encode())}' for url in member.peerURLs]
        lines += [f'"ClientURL" : {quote(url.encode())}' for url in member.clientURLs]
        lines += [f'"IsLearner" : {"true" if member.isLearner else "false"}', ""]
    return "".join(text + "\n" for text in lines).encode()


@click.command("add", cls=Command)
@click.argument("args", nargs=-1, metavar="MEMBER_NAME")
@peer_urls_option
@click.option("--learner", is_flag=True, help="Add it as a learner.")
@click.pass_context
def add(ctx: click.Context, args: tuple[str, ...], peer_urls: str, learner: bool) -> None:
    """Add a member."""
    from lessor.api.proto import rpc_pb2 as rpc

    if not args:
        raise Failure(BAD_ARGS, "member name not provided")
    if len(args) > 1:
        raise Failure(BAD_ARGS, "too many arguments")
    if not peer_urls:
        raise Failure(BAD_ARGS, "member peer urls not provided")
    settings = settings_of(ctx)
    check_format(settings, *CHANGE_FORMATS)
    urls = peer_urls.split(",")
    reply = call(settings, CLUSTER + "MemberAdd", rpc.MemberAddRequest(peerURLs=urls, isLearner=learner))
    kind = "added as learner to" if learner else "added to"
    sentence = f"Member {reply.member.ID:16x} {kind} cluster {reply.header.cluster_id:16x}\n"
    peers = [
        f"{args[0] if member.ID == reply.member.ID else member.name}={url}"
        for member in reply.members
        for url in member.peerURLs
    ]
    variables = (
        f'\nETCD_NAME="{args[0]}"\nETCD_INITIAL_CLUSTER="{",".join(peers)}"\n'
        f'ETCD_INITIAL_ADVERTISE_PEER_URLS="{peer_urls}"\nETCD_INITIAL_CLUSTER_STATE="existing"\n'
    )
    _write(settings, reply, sentence + variables)


@click.command("remove", cls=Command)
@id_argument
@click.pass_context
def remove(ctx: click.Context, args: tuple[str, ...]) -> None:
    """Remove a member."""
    from lessor.api.proto import rpc_pb2 as rpc

    member_id, settings = _id(args), settings_of(ctx)
    check_format(settings, *CHANGE_FORMATS)
    reply = call(settings, CLUSTER + "MemberRemove", rpc.MemberRemoveRequest(ID=member_id))
    _write(settings, reply, f"Member {member_id:16x} removed from cluster {reply.header.cluster_id:16x}\n")


@click.command("update", cls=Command)
@id_argument
@peer_urls_option
@click.pass_context
def update(ctx: click.Context, args: tuple[str, ...], peer_urls: str) -> None:
    """Change a member's peer URLs."""
    from lessor.api.proto import rpc_pb2 as rpc

    member_id, settings = _id(args), settings_of(ctx)
    if not peer_urls:
        raise Failure(BAD_ARGS, "member peer urls not provided")
    check_format(settings, *CHANGE_FORMATS)
    request = rpc.MemberUpdateRequest(ID=member_id, peerURLs=peer_urls.split(","))
    reply = call(settings, CLUSTER + "MemberUpdate", request)
    _write(settings, reply, f"Member {member_id:16x} updated in cluster {reply.header.cluster_id:16x}\n")


@click.command("promote", cls=Command)
@id_argument
@click.pass_context
def promote(ctx: click.Context, args: tuple[str, ...]) -> None:
    """Make a learner a voting member."""
    from lessor.api.proto import rpc_pb2 as rpc

    member_id, settings = _id(args), settings_of(ctx)
    check_format(settings, *CHANGE_FORMATS)
    reply = call(settings, CLUSTER + "MemberPromote", rpc.MemberPromoteRequest(ID=member_id))
    _write(settings, reply, f"Member {member_id:16x} promoted in cluster {reply.header.cluster_id:16x}\n")


member = Group(
    "member",
    help="List and change the members of the cluster.",
    loaders={
        "list": ("List the members.", lambda: list_),
        "add": ("Add a member.", lambda: add),
        "remove": ("Remove a member.", lambda: remove),
        "update": ("Change a member's peer URLs.", lambda: update),
        "promote": ("Make a learner a voting member.", lambda: promote),
    },
)
