# SPDX-License-Identifier: Apache-2.0
"""Chooses the session of a connection: by its first bytes and by the listener that accepted it."""

from lessor.gateway import routes
from lessor.server.loop.core import Core
from lessor.server.observe.pages import PATHS_OF_METRICS_URLS
from lessor.server.transport.connection import Connection, Session
from lessor.server.transport.h1_session import H1Session
from lessor.server.transport.h2_session import H2Session
from lessor.server.transport.http_calls import Body, Exchange, Plain, answer

_NO_PAGE = routes.page(404, "404 page not found")


def speak_to_clients(connection: Connection, kind: str) -> Session:
    """For --listen-client-urls: all calls of the API, and the pages.

    The pages on an HTTP/1.1 connection that has asked for nothing else leave while another server may lead: a probe
    must not take a server for dead whose engine is away.
    """
    if kind == "h2":
        return H2Session(connection)
    turn = connection.core.turn

    def serve(core: Core, exchange: Exchange) -> Body:
        if not core.pages.has(exchange.path):
            turn.shows_data(connection)
        return answer(core, exchange)

    turn.shows_no_data(connection)
    return H1Session(connection, serve, websockets=True)


def speak_to_monitors(connection: Connection, kind: str) -> Session:
    """For --listen-metrics-urls: HTTP/1.1, and only the pages for monitoring.

    No call of the API is served there, so the port may be open to a network that must not reach the API.
    """
    session = H1Session(connection, _answer_monitor, websockets=False)
    if kind == "h2":
        session.refuse()
    return session


def _answer_monitor(core: Core, exchange: Exchange) -> Body:
    return answer(core, exchange) if exchange.path in PATHS_OF_METRICS_URLS else Plain(exchange, lambda: _NO_PAGE)
