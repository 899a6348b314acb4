"""Where a command can serve."""

import socket


def require_free(host: str, port: int) -> None:
    """ValueError if nothing can be served there."""
    if not 0 < port < 65536:
        raise ValueError(f"--port {port} must be from 1 to 65535")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ValueError(
                f"cannot serve at {host}:{port} ({error.strerror}): give another --port or --host"
            ) from None
