"""A fast store on loopback: files of one directory by GET with Range, If-Match and ETag, sent by the kernel.

It stands where a store is that is faster than the core; what real stores do wrong is not its matter. An S3 client that
asks by path finds ``/bucket/key`` here, as it does not check who asks.
"""

from __future__ import annotations

import contextlib
import http.server
import multiprocessing
import os
import re
import socket
import ssl
from pathlib import Path
from typing import Any

from functions import aside


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    root = Path()

    def do_GET(self) -> None:
        path = self.root / self.path.partition("?")[0].lstrip("/")
        if not path.is_file():
            self.send_error(404)
            return
        with path.open("rb") as file:
            found = os.fstat(file.fileno())
            etag = f'"{found.st_mtime_ns:x}-{found.st_size:x}"'
            if self.headers.get("If-Match", etag) != etag:
                self.send_error(412)
                return
            start = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
            begin = int(start[1]) if start else 0
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {begin}-{found.st_size - 1}/{found.st_size}")
            self.send_header("Content-Length", str(found.st_size - begin))
            self.send_header("ETag", etag)
            self.end_headers()
            self.wfile.flush()
            self.connection.sendfile(file, begin)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def _serve(listening: socket.socket, root: Path, certificate: Path | None, elsewhere: bool) -> None:
    Handler.root = root
    if elsewhere:
        os.setsid()
        aside.put(os.getpid())
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler, bind_and_activate=False)
    server.socket.close()
    server.socket = listening
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(listening, server_side=True)
    server.serve_forever()


class StaticStore:
    """The store in a process of its own; a context manager.

    Args:
        root: what it serves.
        certificate: PEM file with key and certificate; then it speaks TLS.
        elsewhere: whether it is to take as little as it can of what others on this machine notice, as a store would
            that is on another one.
    """

    def __init__(self, root: Path, certificate: Path | None = None, *, elsewhere: bool = False) -> None:
        listening = socket.create_server(("127.0.0.1", 0), backlog=64)
        scheme = "https" if certificate else "http"
        self.url = f"{scheme}://127.0.0.1:{listening.getsockname()[1]}"
        context = multiprocessing.get_context("fork")
        self._process = context.Process(target=_serve, args=(listening, root, certificate, elsewhere), daemon=True)
        with aside.starting() if elsewhere else contextlib.nullcontext():
            self._process.start()
        listening.close()

    def __enter__(self) -> StaticStore:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.join()
