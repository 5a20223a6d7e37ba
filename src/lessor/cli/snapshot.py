# SPDX-License-Identifier: Apache-2.0
"""`lessor snapshot`: save, status, restore. `save` is etcdctl's, the other two work on files as etcdutl's do.

`save` asks for Lessor's own form, from which the very same server comes back, and takes etcd's from a server that is no
Lessor. `--format` insists on one of them.

A snapshot is saved under another name first. It gets its own name when it is whole: its checksum is right, and the disk
has it.
"""

import hashlib
import json
import os
import sys
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import click

from lessor.base import snapshot_forms
from lessor.cli import printing
from lessor.cli.asking import ask
from lessor.cli.failure import BAD_ARGS, ERROR, INTERRUPTED, Failure
from lessor.cli.many import check_format, size_text, table
from lessor.cli.options import Command, Group, settings_of
from lessor.cli.progress import progress

if TYPE_CHECKING:
    from lessor.api.proto import rpc_pb2 as rpc
    from lessor.client import AsyncClient
    from lessor.durable.etcd_snapshot import Restored

file_argument = click.argument("args", nargs=-1, metavar="FILE")
CHECKSUM_BYTES = 32
BUMP_MAX = 2**60  # far beyond what a server can have counted meanwhile
_SQLITE = b"SQLite format 3\0"  # what a file of Lessor's own form begins with
_OTHER_FORM = {  # by what the server has sent
    snapshot_forms.ETCD: "the server is no Lessor and has etcd's form only: leave --format out, or take --format etcd",
    snapshot_forms.LESSOR: "the server is a Lessor that has its own form only: upgrade it, or take --format lessor",
}


@click.command("save", cls=Command)
@file_argument
@click.option(
    "--format",
    "form",
    type=click.Choice(snapshot_forms.FORMS),
    help="For `lessor snapshot restore` (lessor) or `etcdutl snapshot restore` (etcd).  [default: lessor]",
)
@click.pass_context
def save(ctx: click.Context, args: tuple[str, ...], form: str | None) -> None:
    """Save a copy of a server's data to a file."""
    from lessor.durable.file_kind import irregular

    if len(args) != 1:
        raise Failure(BAD_ARGS, "snapshot save expects one argument <filename>")
    settings = settings_of(ctx)
    check_format(settings, "simple", "json", "fields", "table", "protobuf")
    if len(settings.endpoints) != 1:
        named = " ".join(settings.endpoints)
        text = f"snapshot must be requested to one selected node, not multiple [{named}]"
        raise Failure(INTERRUPTED, text)
    part = Path(args[0] + ".part")
    try:
        kind = irregular(part, follow=True)
        if kind:
            raise Failure(INTERRUPTED, f"could not open {part} ({kind} is there, not a file)")
        file = part.open("wb")
    except OSError as error:
        text = f"could not open {part} (open {part}: {(error.strerror or '').lower()})"
        raise Failure(INTERRUPTED, text) from None
    try:
        with file:
            part.chmod(0o600)  # values may be secrets
            version = ask(settings, lambda client: _receive(client, file, form))
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, args[0])
    except OSError as error:
        raise Failure(INTERRUPTED, f"could not write {part} ({(error.strerror or str(error)).lower()})") from None
    finally:
        part.unlink(missing_ok=True)
    printing.write(f"Snapshot saved at {args[0]}\nServer version {version}\n".encode())


async def _receive(client: "AsyncClient", file: BinaryIO, form: str | None) -> str:
    """Writes what the server sends; returns the version of its data.

    Failure when the checksum does not match, or it is not of the form. None: any form, Lessor's own if there is one.
    """
    digest = hashlib.sha256()
    tail, version = b"", ""
    async with aclosing(client.snapshot(form=form or snapshot_forms.LESSOR)) as replies:
        first = await anext(replies)
        sent = snapshot_forms.LESSOR if first.blob.startswith(_SQLITE) else snapshot_forms.ETCD
        if form not in (None, sent):
            raise Failure(BAD_ARGS, _OTHER_FORM[sent])
        with progress("saving", first.remaining_bytes + len(first.blob)) as done:
            reply: rpc.SnapshotResponse | None = first
            while reply is not None:
                version = reply.version
                data = tail + reply.blob
                tail = data[-CHECKSUM_BYTES:]
                digest.update(data[:-CHECKSUM_BYTES])
                file.write(data[:-CHECKSUM_BYTES])
                done(len(reply.blob))
                reply = await anext(replies, None)
    if tail != digest.digest():
        raise Failure(ERROR, "the snapshot's checksum does not match what was received: try again")
    file.write(tail)
    return version


@click.command("status", cls=Command)
@file_argument
@click.pass_context
def status(ctx: click.Context, args: tuple[str, ...]) -> None:
    """Check a saved file, of Lessor or etcd, and show what is in it.

    The hash is that of `endpoint hashkv`; of etcd's file that of `etcdutl snapshot status`.
    """
    from lessor.durable.engine import DataDirError

    if len(args) != 1:
        raise Failure(BAD_ARGS, "snapshot status requires exactly one argument")
    output = check_format(settings_of(ctx), "simple", "json", "fields", "table")
    try:
        hash_, revision, keys, size, version = _look(Path(args[0]))
    except DataDirError as error:
        raise Failure(ERROR, str(error)) from None
    cells = [f"{hash_:x}", str(revision), str(keys), size_text(size), version]
    if output == "json":
        data = {"hash": hash_, "revision": revision, "totalKey": keys, "totalSize": size, "version": version}
        printing.write(json.dumps(data, separators=(",", ":")).encode() + b"\n")
    elif output == "fields":
        lines = (f'"Hash" : {hash_}', f'"Revision" : {revision}', f'"Keys" : {keys}', f'"Size" : {size}')
        printing.write("".join(line + "\n" for line in (*lines, f'"Version" : "{version}"')).encode())
    elif output == "table":
        printing.write(table(("hash", "revision", "total keys", "total size", "version"), [cells]))
    else:
        printing.write(", ".join(cells).encode() + b"\n")


def _look(path: Path) -> tuple[int, int, int, int, str]:
    """(hash, revision, keys, bytes of the database, version of its schema).

    Of our own file the keys count with their retained versions, of etcd's they are those that exist, as with etcdutl.
    """
    from lessor.durable import etcd_snapshot, snapshot_file
    from lessor.state.digest import hash_kv
    from lessor.state.machine import Identity
    from lessor.state.replay import restore as replay

    if etcd_snapshot.is_etcd(path):
        found = etcd_snapshot.status(path)
        if not found.has_checksum:
            print(f"{path} has no checksum at its end: a changed byte of a value would not be found", file=sys.stderr)
        return found[:5]
    size = snapshot_file.check(path)
    with snapshot_file.opened(path) as loaded:
        meta = loaded.meta
        machine = replay(Identity(meta.cluster_id, meta.member_id, meta.term), loaded)
    store = machine.store
    return (
        hash_kv(store),
        store.revision,
        store.log_position(store.revision + 1),
        size,
        f"lessor schema {meta.schema_version}",
    )


@click.command("restore", cls=Command)
@file_argument
@click.option("--data-dir", default="default.lessor", show_default=True, help="The directory to make; must not exist.")
@click.option(
    "--skip-hash-check", is_flag=True, help="Do without the checksum: for a file copied from a data directory."
)
@click.option(
    "--bump-revision",
    type=click.IntRange(0, BUMP_MAX),
    default=0,
    help="By how much the newest revision is to grow; with --mark-compacted.",
)
@click.option(
    "--mark-compacted", is_flag=True, help="Compact at the newest revision then, so that no old watch goes on from it."
)
@click.pass_context
def restore(
    ctx: click.Context,
    args: tuple[str, ...],
    data_dir: str,
    skip_hash_check: bool,
    bump_revision: int,
    mark_compacted: bool,
) -> None:
    """Make a data directory out of a saved file, of Lessor or of etcd 3.4 to 3.7.

    With --skip-hash-check also out of the file member/snap/db of an etcd that was stopped.
    """
    from lessor.durable import etcd_snapshot, snapshot_file
    from lessor.durable.engine import DataDirError

    if len(args) != 1:
        raise Failure(BAD_ARGS, "snapshot restore requires exactly one argument")
    if bool(bump_revision) != mark_compacted:
        raise Failure(BAD_ARGS, "--mark-compacted required if --bump-revision > 0, and not allowed without it")
    path = Path(args[0])
    restored = None
    try:
        with progress("restoring", os.path.getsize(path)) as done:
            if etcd_snapshot.is_etcd(path):
                restored = etcd_snapshot.restore(
                    path, Path(data_dir), skip_checksum=skip_hash_check, bump_revision=bump_revision, progress=done
                )
            else:
                snapshot_file.restore(
                    path, Path(data_dir), skip_checksum=skip_hash_check, bump_revision=bump_revision, progress=done
                )
    except FileNotFoundError:
        raise Failure(ERROR, f"{args[0]}: no such file or directory") from None
    except DataDirError as error:
        raise Failure(ERROR, str(error)) from None
    lines = [f"restored {args[0]}: serve it with --data-dir {data_dir}"]
    if restored is not None:
        lines += about_etcd(restored)
    printing.write("".join(line + "\n" for line in lines).encode())


def about_etcd(restored: "Restored") -> list[str]:
    """What was carried over from an etcd, and what was not, a line each."""
    version = f"etcd {restored.version}" if restored.version else "etcd"
    history = f", history since {restored.compact_revision}" if restored.compact_revision > 0 else ""
    lines = [
        f"from {version}, as of revision {restored.revision}{history}: changes of keys {restored.changes}, "
        f"leases {restored.leases}, users {restored.users}, roles {restored.roles}, "
        f"auth {'on' if restored.auth_enabled else 'off'}",
        f"left out: the cluster and its members ({restored.members}); the new one has one, and ids of its own",
    ]
    lines += [f"left out: bucket {name[:32]!r}"[:80] for name in restored.unknown_buckets]
    if restored.alarms:
        lines.append("an alarm is up: see `lessor alarm list`, and `lessor alarm disarm` when its cause is gone")
    if not restored.has_checksum:
        lines.append(
            f"the file has no checksum, and is of raft index {restored.raft_index}: "
            "what an etcd that was killed had written after that is in its log alone"
        )
    if restored.one_meta:
        lines.append("one of the file's two heads is damaged: its newest 0.1 s may be missing")
    return lines


snapshot = Group(
    "snapshot",
    help="Save a server's data, look at a saved file, make a data directory out of it.",
    loaders={
        "save": ("Save a copy of a server's data to a file.", lambda: save),
        "status": ("Check a saved file and show what is in it.", lambda: status),
        "restore": ("Make a data directory out of a saved file.", lambda: restore),
    },
)
