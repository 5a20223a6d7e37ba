# SPDX-License-Identifier: Apache-2.0
"""The method that an HTTP request means, and the answer to a request that means none, as in etcd 3.6.

Laws
- Every route takes POST alone. Another verb on it is answered 501 with code 12, "Method Not Allowed" (so in etcd 3.6;
  3.5 said 405). An unknown path below a prefix is answered 404 with code 5, any other unknown path with a page of text.
  OPTIONS is answered 200 for any path, because browsers ask before they post.
- Error bodies hold `error`, `code` and `message`: clients of 3.5 read the first, those of 3.6 the others.
- Header names here are lower case, ready for HTTP/2; the HTTP/1 side spells them as it likes.

Does not do: /health, /version and /metrics; `page` and `wrong_verb` make the answers for them.
"""

import posixpath
from typing import NamedTuple
from urllib.parse import quote, unquote

from lessor.api.methods import BY_ROUTE, ROUTE_PREFIXES, Method
from lessor.base.errors import HTTP_STATUS, Code, EtcdError
from lessor.gateway.json_codec import quoted

Headers = tuple[tuple[bytes, bytes], ...]

CORS_HEADERS: Headers = (
    (b"access-control-allow-headers", b"accept, content-type, authorization"),
    (b"access-control-allow-methods", b"POST, GET, OPTIONS, PUT, DELETE"),
    (b"access-control-allow-origin", b"*"),
)
# Of a successful reply, unary or streaming.
JSON_HEADERS: Headers = (
    *CORS_HEADERS,
    (b"content-type", b"application/json"),
    (b"grpc-metadata-content-type", b"application/grpc"),
)
# Of an error, also of a stream that failed before its first message.
ERROR_HEADERS: Headers = (*CORS_HEADERS, (b"content-type", b"application/json"))
TEXT_HEADERS: Headers = (
    *CORS_HEADERS,
    (b"content-type", b"text/plain; charset=utf-8"),
    (b"x-content-type-options", b"nosniff"),
)

_PREFIXES = tuple(prefix + "/" for prefix in ROUTE_PREFIXES)


class Answer(NamedTuple):
    """A whole reply, ready to be sent by either version of HTTP."""

    status: int
    headers: Headers
    body: bytes


def error_body(error: EtcdError) -> bytes:
    """The body of a unary error reply, without details, as in etcd."""
    text = quoted(error.message)
    return b'{"error":%b,"code":%d,"message":%b}' % (text, error.code, text)


def error_answer(error: EtcdError) -> Answer:
    return Answer(HTTP_STATUS[error.code], ERROR_HEADERS, error_body(error))


def page(status: int, text: str) -> Answer:
    """A short text for a person: the answer of paths outside the API."""
    return Answer(status, TEXT_HEADERS, text.encode() + b"\n")


def wrong_verb(allowed: str) -> Answer:
    """405, for paths outside the API. `allowed`: the verbs that the path takes, "GET"."""
    answer = page(405, "Method Not Allowed")
    return answer._replace(headers=(*answer.headers, (b"allow", allowed.encode("ascii"))))


_PREFLIGHT = Answer(200, CORS_HEADERS, b"")
_NO_PAGE = page(404, "404 page not found")
_NO_ROUTE = error_answer(EtcdError(Code.NOT_FOUND, "Not Found"))
_WRONG_VERB = error_answer(EtcdError(Code.UNIMPLEMENTED, "Method Not Allowed"))


def match(verb: str, path: str) -> Method | Answer:
    """The method that an HTTP request means, or the answer when it means none. `path`: as it came, percent-encoded.

    Cost: one look-up for a route in its usual spelling; other spellings cost a few more.
    """
    if verb == "OPTIONS":
        return _PREFLIGHT
    method = BY_ROUTE.get(path)
    if method is None:
        return _match_other(verb, path)
    return method if verb == "POST" else _WRONG_VERB


def _match_other(verb: str, path: str) -> Method | Answer:
    """`match` for a path that is no route as it stands: it has another spelling, or is unknown."""
    plain = unquote(path)
    if not plain.startswith("/"):
        return _NO_PAGE
    clean = posixpath.normpath("/" + plain.lstrip("/"))
    if plain.endswith("/") and clean != "/":
        clean += "/"
    if clean + "/" in _PREFIXES:
        clean += "/"
    if clean != plain and clean.startswith(_PREFIXES):
        # Clients that join a base URL with a path get "//v3/...": redirect them to the usual spelling, as etcd does.
        # 307 keeps the verb and the body.
        return Answer(307, (*CORS_HEADERS, (b"location", quote(clean).encode("ascii"))), b"")
    method = BY_ROUTE.get(plain)
    if method is not None:
        return method if verb == "POST" else _WRONG_VERB
    return _NO_ROUTE if plain.startswith(_PREFIXES) else _NO_PAGE
