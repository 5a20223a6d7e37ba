# SPDX-License-Identifier: Apache-2.0
"""The page for people: the files of lessor/web, served at /ui/ to a browser.

Laws
- Every file is read once, when the server starts. A request costs a look-up and no file: a path that is none of those
  read then is not served, however it is spelled.
- GET and HEAD only. A browser may keep a file, and asks each time whether it is still the same (ETag).
- The page may run nothing and ask nothing but what this server gives it: see _HEADERS. It has no CORS headers: no
  other site has a use for it.
- All links of the files are relative, and so is the redirect from `/`: the page works behind a proxy that puts a path
  before ours.

The page itself calls the JSON gateway, as any script could. It gets nothing here that the API does not have.
"""

from collections.abc import Iterator
from hashlib import sha256
from importlib import resources
from importlib.resources.abc import Traversable

from lessor.gateway.routes import Answer, Headers, match, wrong_verb

ROOT = "/ui/"
_REDIRECTS = ("/", "/ui")  # a relative "ui/" leads to the page from both
_TYPES = {
    "css": b"text/css; charset=utf-8",
    "html": b"text/html; charset=utf-8",
    "js": b"text/javascript; charset=utf-8",
    "svg": b"image/svg+xml",
    "txt": b"text/plain; charset=utf-8",
}
_POLICY = b"; ".join(
    (
        b"default-src 'none'",
        b"script-src 'self'",
        b"style-src 'self'",
        b"img-src 'self'",
        b"connect-src 'self'",
        b"base-uri 'none'",
        b"form-action 'none'",
        b"frame-ancestors 'none'",
        b"require-trusted-types-for 'script'",  # text that strangers wrote cannot become markup, even by a mistake
        b"trusted-types 'none'",
    )
)
_HEADERS: Headers = (
    (b"content-security-policy", _POLICY),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), geolocation=(), microphone=(), payment=(), usb=()"),
)


def _files(folder: Traversable, above: str = "") -> Iterator[tuple[str, bytes]]:
    for each in folder.iterdir():
        if each.is_dir():
            yield from _files(each, f"{above}{each.name}/")
        elif each.name.rpartition(".")[2] in _TYPES:
            yield above + each.name, each.read_bytes()


class Site:
    """The files of the page, in memory. `paths`: all paths that have an answer here."""

    def __init__(self) -> None:
        """Reads the files: a third of a megabyte, in less than a millisecond where the system has them in memory."""
        self._found: dict[str, Answer] = {}  # by path, with the ETag as the last header
        for name, body in _files(resources.files("lessor") / "web"):
            head = (
                *_HEADERS,
                (b"content-type", _TYPES[name.rpartition(".")[2]]),
                (b"cache-control", b"no-cache"),
                (b"etag", b'"%s"' % sha256(body).hexdigest()[:32].encode("ascii")),
            )
            self._found[ROOT + ("" if name == "index.html" else name)] = Answer(200, head, body)
        self.paths = frozenset((*self._found, *_REDIRECTS))

    def page(self, method: str, path: str, accept: bytes | None = None, if_none_match: bytes | None = None) -> Answer:
        """The whole reply to a request for one of `paths`. The last two are headers of the request."""
        if path == "/" and (method not in ("GET", "HEAD") or b"text/html" not in (accept or b"").lower()):
            found = match(method, path)  # no browser: it gets what it gets from etcd
            assert isinstance(found, Answer)
            return found
        if method not in ("GET", "HEAD"):
            return wrong_verb("GET, HEAD")
        if path in _REDIRECTS:
            return Answer(307, (*_HEADERS, (b"vary", b"accept"), (b"location", b"ui/")), b"")
        found = self._found[path]
        tag = found.headers[-1][1]
        if if_none_match is not None and tag in (
            each.strip().removeprefix(b"W/") for each in if_none_match.split(b",")
        ):
            return Answer(304, found.headers, b"")
        return found
