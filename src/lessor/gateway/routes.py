# SPDX-License-Identifier: Apache-2.0
"""Which method an HTTP request means, and what is answered when it means none: as etcd 3.6 does.

Laws
- Every route takes POST and nothing else. Any other verb on it is 501 with code 12, "Method Not Allowed" (that is what
  etcd 3.6 answers; 3.5 said 405). An unknown path below a prefix is 404 with code 5; any other path is not ours and
  gets the text page. OPTIONS is answered 200 for any path, for browsers ask before they post.
- Error bodies hold `error`, `code` and `message`: clients of 3.5 read the first, those of 3.6 the others.
- Header names here are lower case, ready for HTTP/2; the HTTP/1 side spells them as it likes.

It does not serve /health, /version and /metrics; `page` and `wrong_verb` answer for whoever does.
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
    """The body of a unary error reply. etcd never attaches details, so there are none."""
    text = quoted(error.message)
    return b'{"error":%b,"code":%d,"message":%b}' % (text, error.code, text)


def error_answer(error: EtcdError) -> Answer:
    return Answer(HTTP_STATUS[error.code], ERROR_HEADERS, error_body(error))


def page(status: int, text: str) -> Answer:
    """A short text for a person, as the paths beside the API answer."""
    return Answer(status, TEXT_HEADERS, text.encode() + b"\n")


def wrong_verb(allowed: str) -> Answer:
    """405 for the paths beside the API. `allowed`: the verbs that they take, "GET"."""
    answer = page(405, "Method Not Allowed")
    return answer._replace(headers=(*answer.headers, (b"allow", allowed.encode("ascii"))))


_PREFLIGHT = Answer(200, CORS_HEADERS, b"")
_NO_PAGE = page(404, "404 page not found")
_NO_ROUTE = error_answer(EtcdError(Code.NOT_FOUND, "Not Found"))
_WRONG_VERB = error_answer(EtcdError(Code.UNIMPLEMENTED, "Method Not Allowed"))


def match(verb: str, path: str) -> Method | Answer:
    """The method behind an HTTP request, or what to answer in its place. `path` is as it came, percent-encoded.

    Cost: one look-up for a route as we print it; other spellings cost a few more.
    """
    if verb == "OPTIONS":
        return _PREFLIGHT
    method = BY_ROUTE.get(path)
    if method is None:
        return _match_other(verb, path)
    return method if verb == "POST" else _WRONG_VERB


def _match_other(verb: str, path: str) -> Method | Answer:
    """A path that is no route as it stands: one that is spelt otherwise, or unknown."""
    plain = unquote(path)
    if not plain.startswith("/"):
        return _NO_PAGE
    clean = posixpath.normpath("/" + plain.lstrip("/"))
    if plain.endswith("/") and clean != "/":
        clean += "/"
    if clean + "/" in _PREFIXES:
        clean += "/"
    if clean != plain and clean.startswith(_PREFIXES):
        # Clients that join a base URL with a path get "//v3/...": send them to the one true spelling, as etcd does.
        # 307 keeps the verb and the body.
        return Answer(307, (*CORS_HEADERS, (b"location", quote(clean).encode("ascii"))), b"")
    method = BY_ROUTE.get(plain)
    if method is not None:
        return method if verb == "POST" else _WRONG_VERB
    return _NO_ROUTE if plain.startswith(_PREFIXES) else _NO_PAGE
