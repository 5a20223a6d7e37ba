# SPDX-License-Identifier: Apache-2.0
"""The output formats. Every expected output was printed by etcdctl 3.6 (the --decimal ones aside, which it has not)."""

import pytest

from lessor.api.proto import mvcc_pb2 as mvcc
from lessor.api.proto import rpc_pb2 as rpc
from lessor.cli.failure import BAD_FEATURE, Failure
from lessor.cli.printer import Printer
from lessor.cli.printing import choose

ID = 7587899077671171172  # 694da2023c1ab464
HEADER = rpc.ResponseHeader(cluster_id=14841639068965178418, member_id=10276657743932975437, revision=45, raft_term=2)
JSON_HEADER = b'"cluster_id":14841639068965178418,"member_id":10276657743932975437,"revision":45,"raft_term":2'
FIELDS_HEADER = b"""\
"ClusterID" : 14841639068965178418
"MemberID" : 10276657743932975437
"Revision" : 45
"RaftTerm" : 2
"""
HEX_HEADER = b"""\
"ClusterID" : cdf818194e3a8c32
"MemberID" : 8e9e05c52164694d
"Revision" : 45
"RaftTerm" : 2
"""


@pytest.fixture
def simple() -> Printer:
    return choose("simple")


@pytest.fixture
def fields() -> Printer:
    return choose("fields")


@pytest.fixture
def hex_fields() -> Printer:
    return choose("fields", hexadecimal=True)


@pytest.fixture
def as_json() -> Printer:
    return choose("json")


def test_grant(simple: Printer, fields: Printer, hex_fields: Printer, as_json: Printer) -> None:
    reply = rpc.LeaseGrantResponse(header=HEADER, ID=ID, TTL=30)
    assert simple.grant(reply) == b"lease 694da2023c1ab464 granted with TTL(30s)\n"
    assert fields.grant(reply) == FIELDS_HEADER + b'"ID" : 7587899077671171172\n"TTL" : 30\n'
    assert hex_fields.grant(reply) == HEX_HEADER + b'"ID" : 694da2023c1ab464\n"TTL" : 30\n'
    assert as_json.grant(reply) == b"{" + JSON_HEADER + b',"ID":7587899077671171172,"TTL":30,"Error":""}\n'
    assert choose("protobuf").grant(reply) == reply.SerializeToString()


def test_revoke(simple: Printer, fields: Printer, as_json: Printer) -> None:
    reply = rpc.LeaseRevokeResponse(header=HEADER)
    assert simple.revoke(0x99, reply) == b"lease 0000000000000099 revoked\n"
    assert fields.revoke(0x99, reply) == FIELDS_HEADER
    assert as_json.revoke(0x99, reply) == b'{"header":{' + JSON_HEADER + b"}}\n"


def test_keep_alive(simple: Printer, fields: Printer, as_json: Printer) -> None:
    reply = rpc.LeaseKeepAliveResponse(header=HEADER, ID=ID, TTL=100)
    assert simple.keep_alive(reply) == b"lease 694da2023c1ab464 keepalived with TTL(100)\n"
    assert fields.keep_alive(reply) == FIELDS_HEADER + b'"ID" : 7587899077671171172\n"TTL" : 100\n'
    assert as_json.keep_alive(reply) == b"{" + JSON_HEADER + b',"ID":7587899077671171172,"TTL":100}\n'
    assert simple.lease_gone(0x99) == b"lease 0000000000000099 expired or revoked.\n"
    assert fields.lease_gone(0x99) == as_json.lease_gone(0x99) == b""


def test_time_to_live(simple: Printer, fields: Printer, as_json: Printer) -> None:
    reply = rpc.LeaseTimeToLiveResponse(header=HEADER, ID=ID, TTL=99, grantedTTL=100)
    said = b"lease 694da2023c1ab464 granted with TTL(100s), remaining(99s)"
    numbers = b'"id":7587899077671171172,"ttl":99,"granted-ttl":100'
    assert simple.time_to_live(reply, False) == said + b"\n"
    assert simple.time_to_live(reply, True) == said + b", attached keys([])\n"
    assert as_json.time_to_live(reply, True) == b"{" + JSON_HEADER + b"," + numbers + b',"keys":null}\n'
    reply.keys.extend([b"la/1", b"la/2"])
    assert simple.time_to_live(reply, True) == said + b", attached keys([la/1 la/2])\n"
    assert as_json.time_to_live(reply, True) == (
        b"{" + JSON_HEADER + b"," + numbers + b',"keys":["bGEvMQ==","bGEvMg=="]}\n'
    )
    assert fields.time_to_live(reply, True) == FIELDS_HEADER + (
        b'"ID" : 7587899077671171172\n"TTL" : 99\n"GrantedTTL" : 100\n"Key" : "la/1"\n"Key" : "la/2"\n'
    )


def test_time_to_live_of_a_lease_that_is_gone(simple: Printer, fields: Printer, as_json: Printer) -> None:
    reply = rpc.LeaseTimeToLiveResponse(header=HEADER, ID=0x99, TTL=-1)
    assert simple.time_to_live(reply, True) == b"lease 0000000000000099 already expired\n"
    assert as_json.time_to_live(reply, False) == (
        b"{" + JSON_HEADER + b',"id":153,"ttl":-1,"granted-ttl":0,"keys":null}\n'
    )
    assert fields.time_to_live(reply, False) == FIELDS_HEADER + b'"ID" : 153\n"TTL" : -1\n"GrantedTTL" : 0\n'
    late = rpc.LeaseTimeToLiveResponse(ID=0x99, TTL=-1, grantedTTL=5)  # overdue, but not ended yet
    assert simple.time_to_live(late, False) == b"lease 0000000000000099 granted with TTL(5s), remaining(-1s)\n"


def test_leases(simple: Printer, fields: Printer, hex_fields: Printer, as_json: Printer) -> None:
    none = rpc.LeaseLeasesResponse(header=HEADER)
    assert simple.leases(none) == b"found 0 leases\n"
    assert as_json.leases(none) == b"{" + JSON_HEADER + b',"leases":[]}\n'
    assert fields.leases(none) == FIELDS_HEADER
    two = rpc.LeaseLeasesResponse(header=HEADER, leases=[rpc.LeaseStatus(ID=ID), rpc.LeaseStatus(ID=-5)])
    assert simple.leases(two) == b"found 2 leases\n694da2023c1ab464\n-000000000000005\n"
    assert as_json.leases(two) == b"{" + JSON_HEADER + b',"leases":[{"id":7587899077671171172},{"id":-5}]}\n'
    assert fields.leases(two) == FIELDS_HEADER + b'"ID" : 7587899077671171172\n"ID" : -5\n'
    assert hex_fields.leases(two) == HEX_HEADER + b'"ID" : 694da2023c1ab464\n"ID" : -000000000000005\n'


def test_decimal_ids() -> None:
    printer = choose("simple", decimal=True)
    reply = rpc.LeaseGrantResponse(header=HEADER, ID=ID, TTL=30)
    assert printer.grant(reply) == b"lease 7587899077671171172 granted with TTL(30s)\n"
    assert printer.leases(rpc.LeaseLeasesResponse(leases=[rpc.LeaseStatus(ID=9)])) == b"found 1 leases\n9\n"
    assert b'"ID" : 7587899077671171172\n' in choose("fields", hexadecimal=True, decimal=True).grant(reply)


ODD = mvcc.KeyValue(
    key=b'\x01\xff"\n<\xc3\xa9', value=b"v\x80&\xe2\x80\xa8", create_revision=12, mod_revision=12, version=1
)
PLAIN = mvcc.KeyValue(key=b"a", value=b"5", create_revision=2, mod_revision=10, version=9, lease=ID)
EMPTY = mvcc.KeyValue(key=b"b", create_revision=11, mod_revision=11, version=1)


def test_get(simple: Printer, fields: Printer, hex_fields: Printer, as_json: Printer) -> None:
    reply = rpc.RangeResponse(header=HEADER, kvs=[ODD, PLAIN, EMPTY], count=3)
    assert simple.get(reply) == b'\x01\xff"\n<\xc3\xa9\nv\x80&\xe2\x80\xa8\na\n5\nb\n\n'
    assert simple.get(reply, True) == b"v\x80&\xe2\x80\xa8\n5\n\n"
    assert choose("simple", hexadecimal=True).get(reply) == (
        rb"\x01\xff\x22\x0a\x3c\xc3\xa9" + b"\n" + rb"\x76\x80\x26\xe2\x80\xa8" + b"\n\\x61\n\\x35\n\\x62\n\n"
    )
    assert as_json.get(reply) == (
        b'{"header":{' + JSON_HEADER + b'},"kvs":['
        b'{"key":"Af8iCjzDqQ==","create_revision":12,"mod_revision":12,"version":1,"value":"doAm4oCo"},'
        b'{"key":"YQ==","create_revision":2,"mod_revision":10,"version":9,"value":"NQ==","lease":7587899077671171172},'
        b'{"key":"Yg==","create_revision":11,"mod_revision":11,"version":1}],"count":3}\n'
    )
    assert (
        fields.get(reply)
        == FIELDS_HEADER
        + (
            r""""Key" : "\x01\xff\"\n<é"
"CreateRevision" : 12
"ModRevision" : 12
"Version" : 1
"Value" : "v\x80&\u2028"
"Lease" : 0
"Key" : "a"
"CreateRevision" : 2
"ModRevision" : 10
"Version" : 9
"Value" : "5"
"Lease" : 7587899077671171172
"Key" : "b"
"CreateRevision" : 11
"ModRevision" : 11
"Version" : 1
"Value" : ""
"Lease" : 0
"More" : false
"Count" : 3
"""
        ).encode()
    )
    assert b'"Lease" : 694da2023c1ab464\n' in hex_fields.get(reply)
    assert b'"Lease" : 0000000000000000\n' in hex_fields.get(reply)


def test_get_nothing(simple: Printer, fields: Printer, as_json: Printer) -> None:
    reply = rpc.RangeResponse(header=HEADER)
    assert simple.get(reply) == b""
    assert as_json.get(reply) == b'{"header":{' + JSON_HEADER + b"}}\n"
    assert fields.get(reply) == FIELDS_HEADER + b'"More" : false\n"Count" : 0\n'


def test_put(simple: Printer, fields: Printer, as_json: Printer) -> None:
    assert simple.put(rpc.PutResponse(header=HEADER)) == b"OK\n"
    reply = rpc.PutResponse(
        header=HEADER, prev_kv=mvcc.KeyValue(key=b"a", create_revision=2, mod_revision=5, version=4, value=b"2")
    )
    assert simple.put(reply) == b"OK\na\n2\n"
    assert as_json.put(reply) == (
        b'{"header":{' + JSON_HEADER + b'},"prev_kv":'
        b'{"key":"YQ==","create_revision":2,"mod_revision":5,"version":4,"value":"Mg=="}}\n'
    )
    assert fields.put(reply) == FIELDS_HEADER + (
        b'"PrevKey" : "a"\n"PrevCreateRevision" : 2\n"PrevModRevision" : 5\n"PrevVersion" : 4\n'
        b'"PrevValue" : "2"\n"PrevLease" : 0\n'
    )


def test_delete(simple: Printer, fields: Printer, as_json: Printer) -> None:
    assert simple.delete(rpc.DeleteRangeResponse(header=HEADER)) == b"0\n"
    assert as_json.delete(rpc.DeleteRangeResponse(header=HEADER)) == b'{"header":{' + JSON_HEADER + b"}}\n"
    pair = mvcc.KeyValue(key=b"a", create_revision=14, mod_revision=14, version=1, value=b"1")
    reply = rpc.DeleteRangeResponse(header=HEADER, deleted=1, prev_kvs=[pair])
    assert simple.delete(reply) == b"1\na\n1\n"
    assert as_json.delete(reply) == (
        b'{"header":{' + JSON_HEADER + b'},"deleted":1,"prev_kvs":['
        b'{"key":"YQ==","create_revision":14,"mod_revision":14,"version":1,"value":"MQ=="}]}\n'
    )
    assert fields.delete(reply).startswith(FIELDS_HEADER + b'"Deleted" : 1\n"PrevKey" : "a"\n')


def test_watch(simple: Printer, fields: Printer, as_json: Printer) -> None:
    was = mvcc.KeyValue(key=b"wa/3", create_revision=22, mod_revision=22, version=1, value=b"v3")
    put = mvcc.Event(kv=was)
    deleted = mvcc.Event(type=mvcc.Event.DELETE, kv=mvcc.KeyValue(key=b"wa/3", mod_revision=23), prev_kv=was)
    reply = rpc.WatchResponse(header=HEADER, events=[put, deleted], watch_id=3)
    assert simple.watch(reply) == b"PUT\nwa/3\nv3\nDELETE\nwa/3\nv3\nwa/3\n\n"
    shown = b'{"key":"d2EvMw==","create_revision":22,"mod_revision":22,"version":1,"value":"djM="}'
    assert as_json.watch(reply) == (
        b'{"Header":{' + JSON_HEADER + b'},"Events":[{"kv":' + shown + b'},{"type":1,"kv":'
        b'{"key":"d2EvMw==","mod_revision":23},"prev_kv":' + shown + b"}],"
        b'"CompactRevision":0,"Canceled":false,"Created":false,"CancelReason":""}\n'
    )
    assert fields.watch(rpc.WatchResponse(header=HEADER, events=[deleted])) == FIELDS_HEADER + (
        b'"Type" : DELETE\n"PrevKey" : "wa/3"\n"PrevCreateRevision" : 22\n"PrevModRevision" : 22\n'
        b'"PrevVersion" : 1\n"PrevValue" : "v3"\n"PrevLease" : 0\n"Key" : "wa/3"\n"CreateRevision" : 0\n'
        b'"ModRevision" : 23\n"Version" : 0\n"Value" : ""\n"Lease" : 0\n'
    )


def test_a_watch_that_ended(fields: Printer, as_json: Printer) -> None:
    header = rpc.ResponseHeader(cluster_id=14841639068965178418, member_id=10276657743932975437, raft_term=2)
    compacted = rpc.WatchResponse(header=header, canceled=True, compact_revision=20)
    assert as_json.watch(compacted) == (
        b'{"Header":{"cluster_id":14841639068965178418,"member_id":10276657743932975437,"raft_term":2},'
        b'"Events":null,"CompactRevision":20,"Canceled":true,"Created":false,"CancelReason":""}\n'
    )
    assert fields.watch(compacted) == FIELDS_HEADER.replace(b'"Revision" : 45\n', b"")
    assert as_json.watch(rpc.WatchResponse(canceled=True)) == (
        b'{"Header":{},"Events":null,"CompactRevision":0,"Canceled":true,"Created":false,"CancelReason":""}\n'
    )


def test_json_escapes_what_html_would_read() -> None:
    reply = rpc.LeaseGrantResponse(error='<&>\u2028"\u00e9')
    assert choose("json").grant(reply) == b'{"ID":0,"TTL":0,"Error":"\\u003c\\u0026\\u003e\\u2028\\"\xc3\xa9"}\n'


@pytest.mark.parametrize(
    ("name", "complaint"), [("table", "table not supported as output format"), ("xml", "unsupported output format")]
)
def test_formats_that_do_not_exist(name: str, complaint: str) -> None:
    with pytest.raises(Failure) as caught:
        choose(name)
    assert (caught.value.exit_code, caught.value.text) == (BAD_FEATURE, complaint)
