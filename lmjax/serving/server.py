"""The process that serves: its socket, its signals, and its end."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Sequence

import uvicorn
from starlette.types import ASGIApp

from lmjax.errors import FlagError
from lmjax.serving.engine import Engine

TOKEN = "LMJAX_TOKEN"
# Connections at once; a further one is answered with status 503.
_MOST_CONNECTIONS = 1024


def checked_token(host: str, given: str | None) -> str:
    """Returns the token of --token or of the environment; empty: none, which only this machine's address allows.

    Raises:
        FlagError: the address can be reached from other machines and there is no token, or the token is too short.
    """
    token = given or os.environ.get(TOKEN, "")
    name = "--token" if given else TOKEN
    if token and (len(token) < 8 or not token.isascii() or not token.isprintable() or " " in token):
        raise FlagError(f"{name}: a token has at least 8 printable ASCII characters and no space; give another one")
    if not token and not _is_local(host):
        raise FlagError(
            f"--host={host}: other machines can reach this address; give --token=SECRET, or set {TOKEN}, which other "
            "users of this machine cannot see"
        )
    return token


def _is_local(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def listen(host: str, port: int) -> socket.socket:
    """Returns a socket that listens; raises FlagError if the address cannot be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        made = socket.socket(family, kind, protocol)
    except OSError as e:
        raise FlagError(f"--host={host}: {e.strerror or e}; give an address of this machine") from e
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind(address)
        # At once, so that a second server on this port fails before it loads its model.
        made.listen(1024)
    except OSError as e:
        made.close()
        if e.errno == errno.EADDRINUSE:
            raise FlagError(f"--port={port}: another process listens there; give another port, or 0 for any") from e
        raise FlagError(f"--host={host}, --port={port}: {e.strerror}; give an address and a port of your own") from e
    return made


class _Server(uvicorn.Server):
    """Uvicorn without its handling of signals, which ends the process by the signal and not with code 0."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def run(app: ASGIApp, listening: socket.socket, engines: Sequence[Engine], *, drain: float, url: str) -> None:
    """Serves until SIGTERM or SIGINT; then answers what was asked within `drain` seconds, and returns.

    A second signal ends it at once.
    """
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        limit_concurrency=_MOST_CONNECTIONS,
        timeout_graceful_shutdown=max(1, round(drain)),
        lifespan="off",
        loop="asyncio",
        http="h11",
        ws="none",
    )
    server = _Server(config)

    async def main() -> None:
        loop = asyncio.get_running_loop()

        def stop() -> None:
            if server.should_exit:
                server.force_exit = True
                return
            print("lmjax serve: ending; what was asked is answered first", file=sys.stderr, flush=True)
            server.should_exit = True
            for engine in engines:
                # It refuses new requests from now on, also on connections that are open.
                threading.Thread(target=engine.drain, args=(drain,), daemon=True).start()

        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, stop)
        print(f"lmjax serve: ready at {url}", file=sys.stderr, flush=True)
        await server.serve(sockets=[listening])

    try:
        asyncio.run(main())
    finally:
        for engine in engines:
            engine.close()
