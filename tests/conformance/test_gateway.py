# SPDX-License-Identifier: Apache-2.0
"""The JSON gateway and the pages beside it, over HTTP/1.1: Lessor and a real etcd.

Where a request is malformed, the status and the code are compared, not the text: it quotes a parser.
"""

import json
import shutil
import socket
import subprocess
from base64 import b64encode
from typing import Any

import pytest

from lessor.api.proto import rpc_pb2 as rpc
from tests.conformance.subject import Subject, end_of, new_lease_id, new_prefix, read_line

CORS = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Methods": "POST, GET, OPTIONS, PUT, DELETE",
    "Access-Control-Allow-Headers": "accept, content-type, authorization",
}


def b64(data: bytes) -> str:
    return b64encode(data).decode()


def header_of(subject: Subject) -> dict[str, str]:
    """The header of a reply of this moment, as JSON has it."""
    header = subject.do(rpc.RangeRequest(key=b"\0")).header
    return {name: str(getattr(header, name)) for name in ("cluster_id", "member_id", "revision", "raft_term")}


def failed(subject: Subject, text: str, code: int) -> dict[str, Any]:
    """An error's body: 3.5 has `error` and `message`, 3.6 `message` alone, Lessor both, for clients of either."""
    body: dict[str, Any] = {"code": code, "message": text}
    return body | {"error": text} if subject.is_lessor or not subject.like(3, 6) else body


# --- the lease routes -------------------------------------------------------------------------------------------------


def test_grant(subject: Subject) -> None:
    lease_id = str(new_lease_id())
    reply = subject.post("/v3/lease/grant", {"TTL": "10", "ID": lease_id})
    assert reply.status == 200
    assert reply.json() == {"header": header_of(subject), "ID": lease_id, "TTL": "10"}
    again = subject.post("/v3/lease/grant", {"TTL": "10", "ID": lease_id})
    assert (again.status, again.json()) == (400, failed(subject, "etcdserver: lease already exists", 9))


def test_keepalive_of_a_missing_lease_is_a_line_without_ttl(subject: Subject) -> None:
    reply = subject.post("/v3/lease/keepalive", {"ID": "12345"})
    assert reply.status == 200
    assert reply.body.endswith(b"\n")
    assert reply.json() == {"result": {"header": header_of(subject), "ID": "12345"}}


def test_keepalive_of_several_leases_is_a_line_for_each(subject: Subject) -> None:
    first, second = subject.grant(100), subject.grant(200)
    body = f'{{"ID":"{first}"}}{{"ID":{second}}}\n  {{"ID":"12345"}}{{}}{{"ID":"{first}"}}'
    lines = subject.post("/v3/lease/keepalive", body).body.splitlines()
    renewed = [(result.get("ID"), result.get("TTL")) for result in (json.loads(line)["result"] for line in lines)]
    assert renewed == [
        (str(first), "100"),
        (str(second), "200"),
        ("12345", None),
        (None, None),
        (str(first), "100"),
    ]


def test_keepalive_without_a_request_is_empty(subject: Subject) -> None:
    reply = subject.post("/v3/lease/keepalive", "")
    assert (reply.status, reply.body) == (200, b"")


def test_keepalive_sends_what_it_has_before_a_malformed_request(subject: Subject) -> None:
    lease_id = subject.grant(100)
    reply = subject.post("/v3/lease/keepalive", f'{{"ID":"{lease_id}"}}{{"ID":')
    lines = [json.loads(line) for line in reply.body.splitlines()]
    assert reply.status == 200
    assert lines[0]["result"]["TTL"] == "100"
    # Lessor says what was wrong; etcd just ends the reply.
    assert [line["error"]["code"] for line in lines[1:]] == ([3] if subject.is_lessor else [])


def test_keepalive_that_begins_malformed_is_refused(subject: Subject) -> None:
    reply = subject.post("/v3/lease/keepalive", '{"ID":"x"}')
    if subject.is_lessor:  # as any other call in malformed JSON
        assert (reply.status, reply.json()["code"]) == (400, 3)
    elif subject.like(3, 6):  # nobody would know that nothing was done
        assert (reply.status, reply.body) == (200, b"")
    else:
        assert (reply.status, reply.json()["code"]) == (500, 2)


def test_timetolive(subject: Subject) -> None:
    lease_id = str(subject.grant(1000))
    prefix = new_prefix()
    subject.put(prefix, lease=int(lease_id))
    reply = subject.post("/v3/lease/timetolive", {"ID": lease_id, "keys": True}).json()
    assert reply == {
        "header": header_of(subject),
        "ID": lease_id,
        "TTL": "999",
        "grantedTTL": "1000",
        "keys": [b64(prefix)],
    }
    assert "keys" not in subject.post("/v3/lease/timetolive", {"ID": lease_id}).json()


def test_timetolive_of_a_missing_lease(subject: Subject) -> None:
    reply = subject.post("/v3/lease/timetolive", {"ID": "12345"})
    assert (reply.status, reply.json()) == (200, {"header": header_of(subject), "ID": "12345", "TTL": "-1"})


def test_leases(subject: Subject) -> None:
    long, short = subject.grant(8_000_000_000), subject.grant(7_000_000_000)
    reply = subject.post("/v3/lease/leases", {}).json()
    assert reply["header"] == header_of(subject)
    assert reply["leases"][-2:] == [{"ID": str(short)}, {"ID": str(long)}]
    for lease_id in (long, short):
        subject.revoke(lease_id)


def test_revoke(subject: Subject) -> None:
    lease_id = str(subject.grant())
    reply = subject.post("/v3/lease/revoke", {"ID": lease_id})
    assert (reply.status, reply.json()) == (200, {"header": header_of(subject)})
    gone = subject.post("/v3/lease/revoke", {"ID": lease_id})
    assert (gone.status, gone.json()) == (404, failed(subject, "etcdserver: requested lease not found", 5))


@pytest.mark.parametrize("root", ["/v3", "/v3beta"])
@pytest.mark.parametrize("stem", ["/lease", "/kv/lease"])
def test_routes_have_aliases(subject: Subject, root: str, stem: str) -> None:
    lease_id = str(subject.grant())
    assert subject.post(f"{root}{stem}/timetolive", {"ID": lease_id}).json()["grantedTTL"] == "600"
    assert {"ID": lease_id} in subject.post(f"{root}{stem}/leases", {}).json()["leases"]
    assert subject.post(f"{root}{stem}/revoke", {"ID": lease_id}).status == 200
    assert not subject.alive(int(lease_id))


@pytest.mark.parametrize("path", ["/lease/grant", "/lease/keepalive", "/kv/range", "/kv/txn"])
def test_the_beta_root_serves_the_same(subject: Subject, path: str) -> None:
    body = {"key": "AA=="} if path == "/kv/range" else {}
    assert subject.post("/v3beta" + path, body).status == subject.post("/v3" + path, body).status == 200


@pytest.mark.parametrize("path", ["/v3/kv/lease/grant", "/v3/kv/lease/keepalive", "/v3/nothing", "/v3/lease/grant/"])
def test_unknown_routes_are_not_found(subject: Subject, path: str) -> None:
    reply = subject.post(path, {})
    assert reply.status == 404
    if subject.like(3, 6):
        assert reply.json() == failed(subject, "Not Found", 5)
    else:  # 3.5 says it to people
        assert reply.body == b"Not Found\n"


@pytest.mark.parametrize("path", ["/v3alpha/lease/grant", "/lease/grant", "/v2/keys", "/"])
def test_other_paths_get_the_text_page(subject: Subject, path: str) -> None:
    reply = subject.post(path, {})
    assert (reply.status, reply.body) == (404, b"404 page not found\n")


@pytest.mark.parametrize("verb", ["GET", "PUT", "DELETE"])
def test_routes_take_only_post(subject: Subject, verb: str) -> None:
    reply = subject.request(verb, "/v3/lease/grant")
    if subject.like(3, 6):
        assert (reply.status, reply.json()) == (501, failed(subject, "Method Not Allowed", 12))
    else:
        assert (reply.status, reply.body) == (405, b"Method Not Allowed\n")


# --- how JSON is spelt ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spelling", ['"%d"', "%d"])
def test_numbers_come_as_strings_or_numbers(subject: Subject, spelling: str) -> None:
    lease_id = new_lease_id()
    body = f'{{"TTL":{spelling % 1000},"ID":{spelling % lease_id}}}'
    reply = subject.post("/v3/lease/grant", body).json()
    assert (reply["TTL"], reply["ID"]) == ("1000", str(lease_id))


def test_numbers_keep_all_their_digits(subject: Subject) -> None:
    for lease_id in (2**63 - 1, -(2**63)):
        assert subject.post("/v3/lease/grant", f'{{"TTL":60,"ID":{lease_id}}}').json()["ID"] == str(lease_id)
        assert subject.post("/v3/lease/revoke", {"ID": str(lease_id)}).status == 200


@pytest.mark.parametrize("body", ["", "{}", '{"ttl":"100"}', '{"unknown":{"deep":[1,null]},"TTL":null}'])
def test_what_is_missing_unknown_or_null_counts_as_zero(subject: Subject, body: str) -> None:
    reply = subject.post("/v3/lease/grant", body).json()
    assert reply["TTL"] == str(subject.min_ttl_s)
    assert int(reply["ID"]) > 0


@pytest.mark.parametrize("body", ["{", "[]", '{"TTL":"x"}', '{"TTL":1.5}', '{"TTL":99999999999999999999}', '{"ID":{}}'])
def test_malformed_json_is_an_invalid_argument(subject: Subject, body: str) -> None:
    reply = subject.post("/v3/lease/grant", body)
    assert (reply.status, reply.json()["code"]) == (400, 3)
    assert reply.headers["Content-Type"] == "application/json"


@pytest.mark.parametrize(("prev", "end"), [("prev_kv", "range_end"), ("prevKv", "rangeEnd")])
def test_names_come_in_either_spelling(subject: Subject, prefix: bytes, prev: str, end: str) -> None:
    key = b64(prefix)
    subject.put(prefix, b"old", lease=0)
    # 3.5 knows the camel-case names of most fields, but not this one: it ignores it.
    if prev == "prev_kv" or subject.is_lessor:
        old = subject.post("/v3/kv/put", {"key": key, "value": b64(b"new"), prev: True}).json()
        assert old["prev_kv"]["value"] == b64(b"old")
    found = subject.post("/v3/kv/range", {"key": key, end: b64(prefix + b"\xff")}).json()
    assert found["count"] == "1"


def test_zeros_are_left_out_of_replies(subject: Subject, prefix: bytes) -> None:
    subject.put(prefix)
    (kv,) = subject.post("/v3/kv/range", {"key": b64(prefix)}).json()["kvs"]
    revision = header_of(subject)["revision"]
    assert kv == {"key": b64(prefix), "create_revision": revision, "mod_revision": revision, "version": "1"}
    assert subject.post("/v3/kv/range", {"key": b64(prefix + b"x")}).json().keys() == {"header"}


@pytest.mark.parametrize("order", ['"DESCEND"', "2"])
def test_enums_come_by_name_or_number(subject: Subject, prefix: bytes, order: str) -> None:
    for name in (b"a", b"b"):
        subject.put(prefix + name)
    body = f'{{"key":"{b64(prefix)}","range_end":"{b64(prefix + b"z")}","sort_order":{order}}}'
    kvs = subject.post("/v3/kv/range", body).json()["kvs"]
    assert [kv["key"] for kv in kvs] == [b64(prefix + b"b"), b64(prefix + b"a")]


def test_bytes_are_standard_base64(subject: Subject, prefix: bytes) -> None:
    key, value = prefix + b"\xff\xfe", bytes(range(256))
    subject.post("/v3/kv/put", {"key": b64(key), "value": b64(value)})
    assert subject.get(key).value == value
    assert subject.post("/v3/kv/range", {"key": b64(key)}).json()["kvs"][0]["value"] == b64(value)


def test_a_txn_in_json(subject: Subject, prefix: bytes) -> None:
    lease_id = subject.grant()
    subject.put(prefix, b"value", lease=lease_id)
    key = b64(prefix)
    body = {
        "compare": [{"key": key, "target": "LEASE", "result": "EQUAL", "lease": str(lease_id)}],
        "success": [
            {"request_range": {"key": key}},
            {"request_put": {"key": key, "value": b64(b"new")}},
            {"request_delete_range": {"key": b64(prefix + b"none")}},
        ],
        "failure": [],
    }
    reply = subject.post("/v3/kv/txn", body).json()
    revision = header_of(subject)["revision"]
    assert reply["succeeded"] is True
    found, put, deleted = reply["responses"]
    assert found["response_range"]["kvs"][0]["lease"] == str(lease_id)
    assert put == {"response_put": {"header": {"revision": revision}}}
    assert deleted == {"response_delete_range": {"header": {"revision": revision}}}
    missed = subject.post("/v3/kv/txn", {"compare": [{"key": key, "target": "VERSION", "version": 7}]}).json()
    assert missed.keys() == {"header"}


def test_a_delete_in_json(subject: Subject, prefix: bytes) -> None:
    subject.put(prefix, b"value")
    reply = subject.post("/v3/kv/deleterange", {"key": b64(prefix), "prev_kv": True}).json()
    assert (reply["deleted"], reply["prev_kvs"][0]["value"]) == ("1", b64(b"value"))
    assert subject.post("/v3/kv/deleterange", {"key": b64(prefix)}).json().keys() == {"header"}


def test_unary_replies_have_no_newline_and_a_length(subject: Subject) -> None:
    reply = subject.post("/v3/lease/leases", {})
    assert reply.body.endswith(b"}")
    assert int(reply.headers["Content-Length"]) == len(reply.body)


@pytest.mark.parametrize("kind", ["application/json", "text/plain", "application/x-www-form-urlencoded"])
def test_the_content_type_of_a_request_does_not_matter(subject: Subject, kind: str) -> None:
    reply = subject.post("/v3/lease/grant", '{"TTL":77}', Content_Type=kind)
    assert reply.json()["TTL"] == "77"


# --- headers, pages ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verb", "path"),
    [
        ("POST", "/v3/lease/leases"),
        ("POST", "/v3/lease/revoke"),
        ("POST", "/v3/lease/keepalive"),
        ("POST", "/v3/nothing"),
        ("OPTIONS", "/v3/lease/grant"),
        ("GET", "/health"),
        ("GET", "/version"),
        ("GET", "/metrics"),
        ("GET", "/nothing"),
    ],
)
def test_browsers_of_any_origin_may_ask(subject: Subject, verb: str, path: str) -> None:
    reply = subject.request(verb, path, "" if verb == "POST" else None)
    assert {name: reply.headers[name] for name in CORS} == CORS


def test_the_question_before_a_post_is_answered_empty(subject: Subject) -> None:
    reply = subject.request("OPTIONS", "/v3/lease/grant")
    assert (reply.status, reply.body) == (200, b"")


def test_replies_say_what_they_are(subject: Subject) -> None:
    for body in ("{}", '{"ID":"12345"}'):
        for path in ("/v3/lease/leases", "/v3/lease/keepalive"):
            headers = subject.post(path, body).headers
            assert headers["Content-Type"] == "application/json"
            assert headers["Grpc-Metadata-Content-Type"] == "application/grpc"


def test_health(subject: Subject) -> None:
    reply = subject.request("GET", "/health")
    assert (reply.status, reply.body) == (200, b'{"health":"true","reason":""}')
    assert reply.headers["Content-Type"] == "text/plain; charset=utf-8"
    refused = subject.post("/health", "")
    assert (refused.status, refused.headers["Allow"]) == (405, "GET")


def test_health_tells_of_alarms(subject: Subject) -> None:
    alarm = {"alarm": "NOSPACE", "memberID": header_of(subject)["member_id"]}
    try:
        subject.post("/v3/maintenance/alarm", alarm | {"action": "ACTIVATE"})
        reply = subject.request("GET", "/health")
        assert (reply.status, reply.body) == (503, b'{"health":"false","reason":"ALARM NOSPACE"}\n')
        assert subject.request("GET", "/health?exclude=NOSPACE").status == 200
        assert subject.request("GET", "/health?exclude=CORRUPT").status == 503
    finally:
        subject.post("/v3/maintenance/alarm", alarm | {"action": "DEACTIVATE"})
    assert subject.request("GET", "/health").status == 200


def test_version(subject: Subject) -> None:
    reply = subject.request("GET", "/version")
    assert reply.headers["Content-Type"] == "application/json"
    names = {"etcdserver", "etcdcluster", "storage"} if subject.like(3, 6) else {"etcdserver", "etcdcluster"}
    assert reply.json().keys() == names
    assert reply.json()["etcdcluster"] == f"{subject.version[0]}.{subject.version[1]}.0"


# --- streams ----------------------------------------------------------------------------------------------------------


def test_a_watch_is_a_line_per_response_as_it_happens(subject: Subject, prefix: bytes) -> None:
    key = b64(prefix)
    lease_id = subject.grant()
    body = json.dumps({"create_request": {"key": key, "prev_kv": True}})
    with subject.http_stream("/v3/watch", body) as stream:
        created = read_line(stream)["result"]
        assert created == {"header": header_of(subject), "created": True}  # watch_id 0 is left out
        assert stream.headers["Transfer-Encoding"] == "chunked"
        first = str(subject.put(prefix, b"value", lease=lease_id))
        (event,) = read_line(stream)["result"]["events"]
        kv = {"key": key, "value": b64(b"value"), "lease": str(lease_id), "version": "1"}
        kv |= {"create_revision": first, "mod_revision": first}
        assert event == {"kv": kv}  # PUT is the default, so the type is left out
        second = str(subject.delete(prefix))
        result = read_line(stream)["result"]
        assert result["header"]["revision"] == second
        assert result["events"] == [{"type": "DELETE", "kv": {"key": key, "mod_revision": second}, "prev_kv": kv}]


def test_a_watch_in_json_replays_history(subject: Subject, prefix: bytes) -> None:
    first = subject.put(prefix, b"1")
    subject.put(prefix, b"2")
    body = json.dumps({"create_request": {"key": b64(prefix), "start_revision": str(first)}})
    with subject.http_stream("/v3/watch", body) as stream:
        assert read_line(stream)["result"]["created"]
        events = read_line(stream)["result"]["events"]
    assert [event["kv"]["value"] for event in events] == [b64(b"1"), b64(b"2")]


def test_several_watches_in_one_body(subject: Subject, prefix: bytes) -> None:
    body = "".join(json.dumps({"create_request": {"key": b64(prefix + name), "watch_id": 5}}) for name in (b"a", b"b"))
    with subject.http_stream("/v3/watch", body) as stream:
        assert read_line(stream)["result"]["watch_id"] == "5"
        refused = read_line(stream)["result"]
    assert (refused["watch_id"], refused["canceled"], refused["created"]) == ("-1", True, True)
    assert refused["cancel_reason"] == "mvcc: duplicate watch ID provided on the WatchStream"


def test_a_line_is_a_chunk(subject: Subject, prefix: bytes) -> None:
    """Clients that print chunks as they come, as curl -N does, see whole lines."""
    body = json.dumps({"create_request": {"key": b64(prefix)}}).encode()
    host, _, port = subject.server.address.partition(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(b"POST /v3/watch HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        reader = connection.makefile("rb")
        while reader.readline() != b"\r\n":
            pass
        for _ in range(3):
            line = reader.read(int(reader.readline(), 16))
            assert line.startswith(b'{"result":')
            assert line.endswith(b"}\n")
            assert reader.readline() == b"\r\n"
            subject.put(prefix)


def test_requests_of_a_stream_are_answered_while_it_is_sent(subject: Subject) -> None:
    if not subject.is_lessor:
        pytest.skip("Go's HTTP/1.1 server reads the whole body before it answers")
    lease_id = subject.grant(100)
    host, _, port = subject.server.address.partition(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(b"POST /v3/lease/keepalive HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        reader = connection.makefile("rb")
        chunk = b'{"ID":%d}' % lease_id
        for number in range(3):
            connection.sendall(b"%x\r\n%b\r\n" % (len(chunk), chunk))
            while number == 0 and reader.readline() != b"\r\n":
                pass
            line = reader.read(int(reader.readline(), 16))
            assert json.loads(line)["result"]["TTL"] == "100"
            reader.readline()
        connection.sendall(b"0\r\n\r\n")
        assert reader.read(5) == b"0\r\n\r\n"


def test_a_connection_is_kept_for_the_next_request(subject: Subject) -> None:
    host, _, port = subject.server.address.partition(":")
    request = b"POST /v3/lease/keepalive HTTP/1.1\r\nHost: x\r\nContent-Length: 12\r\n\r\n"
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        reader = connection.makefile("rb")
        for _ in range(3):
            connection.sendall(request + b'{"ID":12345}')
            assert reader.readline() == b"HTTP/1.1 200 OK\r\n"
            while reader.readline() not in (b"0\r\n", b""):
                pass
            assert reader.readline() == b"\r\n"


@pytest.mark.slow
def test_json_over_http2(subject: Subject) -> None:
    if not subject.is_lessor:
        pytest.skip("without TLS, etcd takes all HTTP/2 for gRPC")
    curl = shutil.which("curl")
    if curl is None or "HTTP2" not in subprocess.run([curl, "--version"], capture_output=True, text=True).stdout:
        pytest.skip("no curl that speaks HTTP/2")
    url = f"{subject.server.client_url}/v3/lease/grant"
    command = [curl, "-s", "--http2-prior-knowledge", "-d", '{"TTL":77}', "-w", " %{http_version}", url]
    body, _, version = subprocess.run(command, capture_output=True, text=True, timeout=10).stdout.rpartition(" ")
    assert (json.loads(body)["TTL"], version) == ("77", "2")


# --- how long a client waits ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("timeout", ["x", "12", "S", "1.5S", "1s", " 1 S"])
@pytest.mark.parametrize("path", ["/v3/kv/range", "/v3/watch"])
def test_a_malformed_timeout_is_refused(subject: Subject, path: str, timeout: str) -> None:
    reply = subject.post(path, {"key": "YQ=="}, Grpc_Timeout=timeout)
    assert (reply.status, reply.json()) == (400, failed(subject, f"invalid grpc-timeout: {timeout.strip()}", 3))


@pytest.mark.parametrize("timeout", ["5S", "1H", "100000000M", "+9S", "0n", "5000000u"])
def test_a_timeout_that_is_kept(subject: Subject, prefix: bytes, timeout: str) -> None:
    assert subject.post("/v3/kv/put", {"key": b64(prefix)}, Grpc_Timeout=timeout).status == 200


def test_a_timeout_that_has_passed_changes_nothing(subject: Subject, prefix: bytes) -> None:
    reply = subject.post("/v3/kv/put", {"key": b64(prefix)}, Grpc_Timeout="-1S")
    assert (reply.status, reply.json()) == (504, failed(subject, "context deadline exceeded", 4))
    assert subject.get(prefix) is None


def test_a_timeout_ends_a_wait_and_takes_its_key_along(subject: Subject, prefix: bytes) -> None:
    assert subject.post("/v3/lock/lock", {"name": b64(prefix), "lease": str(subject.grant())}).status == 200
    body = {"name": b64(prefix), "lease": str(subject.grant())}
    reply = subject.post("/v3/lock/lock", body, Grpc_Timeout="20m")
    # etcd's text may be that of its own connection; and where the time is up before it waits, its code is Unknown.
    ended = (reply.status, reply.json()["code"])
    assert ended == (504, 4) or (ended == (500, 2) and not subject.is_lessor)
    while subject.do(rpc.RangeRequest(key=prefix, range_end=end_of(prefix))).count > 1:
        pass  # etcd takes it away in a call of its own


def test_a_timeout_ends_a_stream(subject: Subject, prefix: bytes) -> None:
    reply = subject.post("/v3/watch", {"create_request": {"key": b64(prefix)}}, Grpc_Timeout="50m")
    created, end = map(json.loads, reply.body.splitlines())
    assert created["result"]["created"]
    texts = {"context deadline exceeded"}
    if not subject.is_lessor and subject.like(3, 6):  # one time in eleven, the text of etcd's own connection
        texts.add("stream terminated by RST_STREAM with error code: CANCEL")
    assert end["error"]["message"] in texts
