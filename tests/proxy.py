"""A TCP proxy on loopback between a server and its clients: what networks and busy servers do to a service."""

import itertools
import re
import socket
import threading
import time
from contextlib import suppress

REQUEST = re.compile(rb"(GET|HEAD|PUT|POST|DELETE) \S+ HTTP/1\.1\r\n")
CONTINUE = b"HTTP/1.1 100"  # which is no answer yet: the server asks for the body of the request
SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
THROTTLED = b"HTTP/1.1 503 Slow Down\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(SLOW_DOWN) + SLOW_DOWN
SLOW_SECONDS = 0.5
FAULTS = {
    "throttled": "503, and nothing is done",
    "dropped": "the connection breaks before the server hears of it",
    "unanswered": "the server does it, and the connection breaks before it can say so",
    "truncated": "the answer lacks its end",
    "slow": "the answer takes longer than clients wait",
}


class Proxy:
    """Forwards connections to `port` of loopback; a `with` block ends it."""

    def __init__(self, port: int) -> None:
        self.target, self.away, self.open = port, False, set()
        self.server = socket.create_server(("127.0.0.1", 0))
        self.port = self.server.getsockname()[1]
        self.kinds, self.every, self.requests, self.faults = None, 1, 0, 0

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

    def disturb(self, *kinds: str, every: int) -> None:
        """From now on, one of so many requests has a fault: these of `FAULTS`, in turn."""
        self.kinds, self.every = itertools.cycle(kinds), every

    def _serve(self) -> None:
        with suppress(OSError):  # closed
            while True:
                client, _ = self.server.accept()
                if self.away:
                    client.close()
                    continue
                server = socket.create_connection(("127.0.0.1", self.target))
                self.open |= {client, server}
                faults: list[str] = []  # of the answer that comes next on this connection
                for forward in (self._requests, self._answers):
                    arguments = (forward, client, server, faults)
                    threading.Thread(target=self._until_one_ends, args=arguments, daemon=True).start()

    def _until_one_ends(self, forward, client: socket.socket, server: socket.socket, faults: list[str]) -> None:
        with suppress(OSError):
            forward(client, server, faults)
        for end in (client, server):
            self.open.discard(end)
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _requests(self, client: socket.socket, server: socket.socket, faults: list[str]) -> None:
        while data := client.recv(1 << 16):
            if REQUEST.match(data):
                self.requests += 1
                if self.kinds and self.requests % self.every == 0:
                    self.faults += 1
                    faults.append(next(self.kinds))
            if "throttled" in faults:
                client.sendall(THROTTLED)
                return
            if "dropped" in faults:
                return
            server.sendall(data)

    def _answers(self, client: socket.socket, server: socket.socket, faults: list[str]) -> None:
        while data := server.recv(1 << 16):
            fault = faults.pop() if faults and not data.startswith(CONTINUE) else None
            if fault == "unanswered":
                return
            if fault == "truncated":
                client.sendall(data[:-1])
                return
            if fault == "slow":
                time.sleep(SLOW_SECONDS)
            client.sendall(data)
