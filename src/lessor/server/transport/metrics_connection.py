# SPDX-License-Identifier: Apache-2.0
"""Connections to --listen-metrics-urls: HTTP/1.1, and only the pages for those who watch over the server.

No call of the API is served here, so that the port may be open to a monitoring network that clients have no access to.
"""

from lessor.gateway import routes
from lessor.server.loop.core import Core
from lessor.server.observe.pages import PATHS_OF_METRICS_URLS
from lessor.server.transport.connection import Connection, Session
from lessor.server.transport.h1_session import H1Session
from lessor.server.transport.http_calls import Body, Exchange, Plain, answer

_NO_PAGE = routes.page(404, "404 page not found")


class MetricsConnection(Connection):
    """One accepted socket."""

    def _speak(self, kind: str) -> Session:
        session = H1Session(self, _answer)
        if kind == "h2":
            session.refuse()
        return session


def _answer(core: Core, exchange: Exchange) -> Body:
    return answer(core, exchange) if exchange.path in PATHS_OF_METRICS_URLS else Plain(exchange, _NO_PAGE)
