# SPDX-License-Identifier: Apache-2.0
"""Compares our protobuf messages with the published field tables of the etcd v3 API (release 3.6,
and RangeStream of 3.7).

`api_fields.txt` states the tables; a field number that differs from them is a client that reads garbage. Both
directions are checked: nothing of the tables is missing here, and nothing is here that the tables do not have. The
health service is gRPC's own and stands in a small table below.

Also here: that our classes live beside those of another etcd client in one process.
"""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import FieldDescriptor, FileDescriptor

from lessor.api.proto import auth_pb2, election_pb2, health_pb2, lock_pb2, mvcc_pb2, rpc_pb2

TABLES = Path(__file__).with_name("api_fields.txt").read_text()
FILES: list[FileDescriptor] = [
    module.DESCRIPTOR for module in (mvcc_pb2, auth_pb2, rpc_pb2, lock_pb2, election_pb2, health_pb2)
]
# https://github.com/grpc/grpc/blob/master/doc/health-checking.md
HEALTH = """
package grpc.health.v1
service Health
  Check HealthCheckRequest -> HealthCheckResponse
  Watch HealthCheckRequest -> stream HealthCheckResponse
message HealthCheckRequest
  1 service string
message HealthCheckResponse
  enum ServingStatus UNKNOWN=0 SERVING=1 NOT_SERVING=2 SERVICE_UNKNOWN=3
  1 status ServingStatus
"""
SCALARS = {
    FieldDescriptor.TYPE_BOOL: "bool",
    FieldDescriptor.TYPE_BYTES: "bytes",
    FieldDescriptor.TYPE_INT32: "int32",
    FieldDescriptor.TYPE_INT64: "int64",
    FieldDescriptor.TYPE_STRING: "string",
    FieldDescriptor.TYPE_UINT32: "uint32",
    FieldDescriptor.TYPE_UINT64: "uint64",
}


def facts_of_tables(text: str) -> Iterator[str]:
    """One line per fact: an rpc, a message, a field, an enum; type names written in full."""
    package = owner = kind = ""
    known = {f"{p}.{name}" for p, name in names_of_tables(text)}

    def full(name: str) -> str:
        for candidate in (name, f"{package}.{owner}.{name}", f"{package}.{name}"):
            if candidate in known:
                return candidate
        return name  # a scalar, or a mistake that the comparison will show

    for line in filter(str.strip, text.splitlines()):
        words = line.split()
        if words[0] == "package":
            package = words[1]
        elif words[0] in ("service", "message"):
            kind, owner = words
            yield f"{kind} {package}.{owner}"
        elif words[0] == "enum":
            parent = f"{package}.{owner}." if line.startswith(" ") else f"{package}."
            yield f"enum {parent}{words[1]} {' '.join(words[2:])}"
        elif kind == "service":
            rpc = re.fullmatch(r"\s+(\w+) (stream )?(\w+) -> (stream )?(\w+)", line)
            assert rpc, line
            name, sends, request, answers, response = rpc.groups()
            yield f"rpc {package}.{owner}.{name} {sends or ''}{full(request)} -> {answers or ''}{full(response)}"
        else:
            field = re.fullmatch(r"\s+(\d+) (\w+) (repeated )?([\w.]+)(?: oneof:(\w+))?", line)
            assert field, line
            number, name, repeated, type_name, oneof = field.groups()
            yield f"field {package}.{owner}.{name} = {number} {repeated or ''}{full(type_name)} oneof:{oneof}"


def names_of_tables(text: str) -> Iterator[tuple[str, str]]:
    package = owner = ""
    for line in filter(str.strip, text.splitlines()):
        words = line.split()
        if words[0] == "package":
            package = words[1]
        elif words[0] == "message":
            owner = words[1]
            yield package, owner
        elif words[0] == "enum":
            yield package, f"{owner}.{words[1]}" if line.startswith(" ") else words[1]


def facts_of_file(file: Any) -> Iterator[str]:
    for service in file.services_by_name.values():
        yield f"service {service.full_name}"
        for rpc in service.methods:
            sends = "stream " if rpc.client_streaming else ""
            answers = "stream " if rpc.server_streaming else ""
            yield f"rpc {rpc.full_name} {sends}{rpc.input_type.full_name} -> {answers}{rpc.output_type.full_name}"
    for enum in file.enum_types_by_name.values():
        yield fact_of_enum(enum)
    for message in file.message_types_by_name.values():
        yield from facts_of_message(message)


def facts_of_message(message: Any) -> Iterator[str]:
    yield f"message {message.full_name}"
    for enum in message.enum_types:
        yield fact_of_enum(enum)
    for nested in message.nested_types:
        yield from facts_of_message(nested)
    for field in message.fields:
        type_ = field.message_type or field.enum_type
        type_name = type_.full_name if type_ else SCALARS[field.type]
        repeated = "repeated " if getattr(field, "is_repeated", None) or is_repeated_before_6(field) else ""
        oneof = field.containing_oneof.name if field.containing_oneof else None
        yield f"field {field.full_name} = {field.number} {repeated}{type_name} oneof:{oneof}"


def is_repeated_before_6(field: Any) -> bool:
    """protobuf 5 knows only `label`, protobuf 7 no longer does."""
    return not hasattr(field, "is_repeated") and field.label == FieldDescriptor.LABEL_REPEATED


def fact_of_enum(enum: Any) -> str:
    return f"enum {enum.full_name} {' '.join(f'{value.name}={value.number}' for value in enum.values)}"


def test_messages_and_services_equal_the_published_tables() -> None:
    published = {*facts_of_tables(TABLES), *facts_of_tables(HEALTH)}
    ours = {fact for file in FILES for fact in facts_of_file(file)}
    assert sorted(published - ours) == []  # missing here, or different
    assert sorted(ours - published) == []  # not in the tables


def test_the_tables_are_read_whole() -> None:
    """Guards the comparison: counts of the table file by plain text search."""
    facts = list(facts_of_tables(TABLES))
    assert len(facts) == len(set(facts))
    assert sum(fact.startswith("message ") for fact in facts) == TABLES.count("\nmessage ")
    assert sum(fact.startswith("service ") for fact in facts) == TABLES.count("\nservice ")
    assert sum(fact.startswith("rpc ") for fact in facts) == TABLES.count(" -> ")
    assert sum(fact.startswith("enum ") for fact in facts) == TABLES.count("enum ")
    assert sum(fact.startswith("field ") for fact in facts) == len(re.findall(r"^  \d+ ", TABLES, re.MULTILINE))


@pytest.mark.parametrize(
    ("line", "changed"),
    [
        ("  11 events repeated mvccpb.Event", "  8 events repeated mvccpb.Event"),
        ("  11 events repeated mvccpb.Event", "  11 events mvccpb.Event"),
        ("  4 grantedTTL int64", "  4 granted_ttl int64"),
        ("  4 raft_term uint64", "  4 raft_term int64"),
        ("  8 lease int64 oneof:target_union", "  8 lease int64"),
        ("  enum FilterType NOPUT=0 NODELETE=1", "  enum FilterType NODELETE=0 NOPUT=1"),
        (
            "  LeaseKeepAlive stream LeaseKeepAliveRequest -> stream LeaseKeepAliveResponse",
            "  LeaseKeepAlive stream LeaseKeepAliveRequest -> LeaseKeepAliveResponse",
        ),
        ("message WatchProgressRequest\n", ""),
    ],
)
def test_the_comparison_sees_a_difference(line: str, changed: str) -> None:
    assert line in TABLES
    published = set(facts_of_tables(TABLES.replace(line, changed)))
    ours = {fact for file in FILES if file.package != "grpc.health.v1" for fact in facts_of_file(file)}
    assert published != ours


ANOTHER_CLIENT = """
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

def register(package, name):
    file = descriptor_pb2.FileDescriptorProto(name=f"another/{package}.proto", package=package, syntax="proto3")
    field = descriptor_pb2.FieldDescriptorProto
    message = file.message_type.add(name=name)
    message.field.add(name="wish", number=1, type=field.TYPE_STRING, label=field.LABEL_OPTIONAL)
    pool = descriptor_pool.Default()
    pool.AddSerializedFile(file.SerializeToString())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{package}.{name}"))

before = register("etcdserverpb", "LeaseGrantRequest")
from lessor.api.proto import mvcc_pb2, rpc_pb2
after = register("mvccpb", "KeyValue")

assert before(wish="x").SerializeToString() == after(wish="x").SerializeToString() == bytes([10, 1]) + b"x"
assert rpc_pb2.LeaseGrantRequest(TTL=5).SerializeToString() == bytes([8, 5])
assert mvcc_pb2.KeyValue(lease=5).SerializeToString() == bytes([48, 5])
print("side by side")
"""


@pytest.mark.slow
def test_classes_of_another_etcd_client_may_live_in_the_same_process() -> None:
    """Another client registers the same names, as it understands them, in protobuf's default pool.

    In a process of its own: what is registered there stays, and other tests may bring a real other client.
    """
    run = subprocess.run([sys.executable, "-c", ANOTHER_CLIENT], capture_output=True, text=True, check=False)
    assert (run.stdout, run.stderr) == ("side by side\n", "")


def test_our_classes_stay_out_of_the_default_pool() -> None:
    for file in FILES:
        with pytest.raises(KeyError):
            descriptor_pool.Default().FindFileByName(file.name)


def test_bytes_on_the_wire() -> None:
    """By hand from the encoding rules: tag = number << 3 | type, varint 0, length-delimited 2."""
    watch = rpc_pb2.WatchResponse(watch_id=-1, events=[mvcc_pb2.Event(type=mvcc_pb2.Event.DELETE)])
    assert watch.SerializeToString() == b"\x10" + b"\xff" * 9 + b"\x01" + b"\x5a\x02\x08\x01"
    compare = rpc_pb2.Compare(range_end=b"\0", lease=0)
    assert compare.SerializeToString() == b"\x40\x00" + b"\x82\x04\x01\x00"  # a zero in a oneof is written


def test_fields_of_newer_clients_are_tolerated() -> None:
    request = rpc_pb2.LeaseGrantRequest.FromString(b"\x08\x05" + b"\x98\x06\x01")  # field 99
    assert (request.TTL, request.ID) == (5, 0)
