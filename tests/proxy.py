"""A TCP proxy on loopback that can be away for a while: what a network does to a service."""

import socket
import threading
from contextlib import suppress


class Proxy:
    """Forwards connections to `port` of loopback; a `with` block ends it."""

    def __init__(self, port: int) -> None:
        self.target, self.away, self.open = port, False, set()
        self.server = socket.create_server(("127.0.0.1", 0))
        self.port = self.server.getsockname()[1]

    def __enter__(self) -> "Proxy":
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self.cut()
        self.server.close()

    def cut(self) -> None:
        """Every connection breaks, and new ones are closed at once, until `mend`."""
        self.away = True
        for connection in list(self.open):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        self.away = False

    def _serve(self) -> None:
        with suppress(OSError):  # closed
            while True:
                client, _ = self.server.accept()
                if self.away:
                    client.close()
                    continue
                server = socket.create_connection(("127.0.0.1", self.target))
                self.open |= {client, server}
                for pair in ((client, server), (server, client)):
                    threading.Thread(target=self._forward, args=pair, daemon=True).start()

    def _forward(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                sink.sendall(data)
        for end in (source, sink):
            self.open.discard(end)
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
