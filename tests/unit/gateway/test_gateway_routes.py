# SPDX-License-Identifier: Apache-2.0
"""Which method a request means and what is answered otherwise; the answers were observed on an etcd 3.6.16."""

import json

import pytest

from lessor.api.methods import BY_PATH, METHODS, ROUTE_PREFIXES, Method
from lessor.base.errors import LEASE_NOT_FOUND, Code, EtcdError
from lessor.gateway.routes import JSON_HEADERS, Answer, error_answer, error_body, match, page, wrong_verb

GRANT = BY_PATH["/etcdserverpb.Lease/LeaseGrant"]
VERBS = ["GET", "HEAD", "PUT", "DELETE", "PATCH", "FOO"]


def answer(verb: str, path: str) -> Answer:
    found = match(verb, path)
    assert isinstance(found, Answer)
    assert found.headers[:3] == JSON_HEADERS[:3]
    return found


def test_every_route_leads_to_its_method() -> None:
    routed = 0
    for method in METHODS:
        for route in method.routes:
            for prefix in ROUTE_PREFIXES:
                assert match("POST", prefix + route) is method
                routed += 1
    assert routed > 90


@pytest.mark.parametrize("path", ["/v3/lease/gran%74", "/v3/lease%2fgrant", "/v3/lease%2Fgrant", "/v3beta/lease/grant"])
def test_other_spellings(path: str) -> None:
    assert match("POST", path) is GRANT


@pytest.mark.parametrize("verb", VERBS)
def test_routes_take_post_only(verb: str) -> None:
    for path in ("/v3/lease/grant", "/v3/lease/gran%74", "/v3/watch"):
        found = answer(verb, path)
        assert found.status == 501
        assert json.loads(found.body) == {
            "error": "Method Not Allowed", "code": 12, "message": "Method Not Allowed",
        }  # fmt: skip
        assert (b"content-type", b"application/json") in found.headers


@pytest.mark.parametrize("verb", ["POST", *VERBS])
@pytest.mark.parametrize(
    "path", ["/v3/nope", "/v3/", "/v3/lease/grant/", "/v3/kv/lease/grant", "/v3beta/x", "/v3/grant"]
)
def test_unknown_routes(verb: str, path: str) -> None:
    found = answer(verb, path)
    assert found.status == 404
    assert found.body == b'{"error":"Not Found","code":5,"message":"Not Found"}'


@pytest.mark.parametrize("path", ["/", "/nope", "/v2/keys", "/v3alpha/lease/grant", "/V3/lease/grant", "*", "", "v3"])
def test_paths_that_are_not_of_the_api(path: str) -> None:
    found = answer("POST", path)
    assert (found.status, found.body) == (404, b"404 page not found\n")
    assert (b"content-type", b"text/plain; charset=utf-8") in found.headers
    assert (b"x-content-type-options", b"nosniff") in found.headers


@pytest.mark.parametrize("path", ["/v3/lease/grant", "/v3/nope", "/nope", "*"])
def test_browsers_may_ask_first(path: str) -> None:
    found = answer("OPTIONS", path)
    assert (found.status, found.body) == (200, b"")
    assert (b"access-control-allow-origin", b"*") in found.headers
    assert (b"access-control-allow-methods", b"POST, GET, OPTIONS, PUT, DELETE") in found.headers
    assert (b"access-control-allow-headers", b"accept, content-type, authorization") in found.headers


@pytest.mark.parametrize(
    ("path", "location"),
    [
        ("/v3", b"/v3/"),
        ("/v3//lease/grant", b"/v3/lease/grant"),
        ("//v3/lease/grant", b"/v3/lease/grant"),
        ("/v3/lease/../lease/grant", b"/v3/lease/grant"),
        ("/v3/./kv/put", b"/v3/kv/put"),
        ("/v3/a%0d%0ab//c", b"/v3/a%0D%0Ab/c"),
    ],
)
def test_crooked_paths_are_sent_to_the_straight_one(path: str, location: bytes) -> None:
    found = answer("POST", path)
    assert found.status == 307
    assert dict(found.headers)[b"location"] == location


def test_error_body_serves_clients_of_all_versions() -> None:
    body = error_body(LEASE_NOT_FOUND.error())
    assert json.loads(body) == {
        "error": "etcdserver: requested lease not found",
        "code": 5,
        "message": "etcdserver: requested lease not found",
    }
    assert json.loads(error_body(EtcdError(Code.UNKNOWN, 'a "b"\n')))["error"] == 'a "b"\n'


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (Code.CANCELED, 499), (Code.UNKNOWN, 500), (Code.INVALID_ARGUMENT, 400), (Code.DEADLINE_EXCEEDED, 504),
        (Code.NOT_FOUND, 404), (Code.PERMISSION_DENIED, 403), (Code.RESOURCE_EXHAUSTED, 429),
        (Code.FAILED_PRECONDITION, 400), (Code.OUT_OF_RANGE, 400), (Code.UNIMPLEMENTED, 501), (Code.UNAVAILABLE, 503),
        (Code.DATA_LOSS, 500), (Code.UNAUTHENTICATED, 401),
    ],
)  # fmt: skip
def test_error_status(code: Code, status: int) -> None:
    found = error_answer(EtcdError(code, "x"))
    assert found.status == status
    assert b"grpc-metadata-content-type" not in dict(found.headers)


def test_pages() -> None:
    assert page(200, "ok").body == b"ok\n"
    refusal = wrong_verb("GET")
    assert (refusal.status, refusal.body) == (405, b"Method Not Allowed\n")
    assert dict(refusal.headers)[b"allow"] == b"GET"


def test_a_match_is_a_method_or_an_answer() -> None:
    for path in ("/v3/lease/grant", "/%", "/%zz", "/v3/%ff", "/" * 1000, "/v3/" + "../" * 100, "/v3/..", "/v3/\xff"):
        assert isinstance(match("POST", path), Method | Answer)
