# SPDX-License-Identifier: Apache-2.0
"""TLS before a PostgreSQL that was built without it, as the wheel's is: ends TLS, and passes the bytes on.

Law: speaks no more of PostgreSQL's protocol than the eight bytes by which a client asks for TLS.
"""

import contextlib
import socket
import ssl
import threading

from tests.certificates import Files

_ASKS_FOR_TLS = bytes.fromhex("0000000804d2162f")


class TlsFront:
    def __init__(self, port: int, files: Files) -> None:
        """Stands before the server at `port`, on `self.port`."""
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(files.certificate, files.key)
        self._behind = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.secured = 0  # connections
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(30)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._threads.append(threading.Thread(target=self._serve, args=(client,)))
            self._threads[-1].start()

    def _serve(self, client: socket.socket) -> None:
        with client:
            if client.recv(8, socket.MSG_WAITALL) != _ASKS_FOR_TLS:
                return
            client.sendall(b"S")
            try:
                secured = self._context.wrap_socket(client, server_side=True)
            except (ssl.SSLError, ConnectionError):  # the client does not trust us
                return
            self.secured += 1
            with secured, socket.create_connection(("127.0.0.1", self._behind)) as server:
                back = threading.Thread(target=_pass_on, args=(server, secured))
                back.start()
                _pass_on(secured, server)
                back.join(30)


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    """Until one of them ends; then both do."""
    with contextlib.suppress(OSError):
        while data := source.recv(65_536):
            target.sendall(data)
    for end in (source, target):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
