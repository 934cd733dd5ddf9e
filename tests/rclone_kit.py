"""rclone's S3 server on a folder: another one than moto, and a strange one.

It answers a Range with 200, ignores If-Match and If-None-Match, and checks who asks. So what holds with both holds.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config

from tests.s3_kit import _die_with_parent, free_port

START_DEADLINE_S = 30.0
KEY, SECRET = "core", "s3cr3t-key"


class RcloneServer:
    """``rclone serve s3`` as a child of the tests, with the face of `S3Server`."""

    def __init__(self) -> None:
        found = shutil.which("rclone") or str(Path(sys.executable).with_name("rclone"))
        self.root = Path(tempfile.mkdtemp(prefix="rclone-"))
        self.port = free_port()
        self.endpoint = f"http://127.0.0.1:{self.port}"
        command = [found, "serve", "s3", "--addr", f"127.0.0.1:{self.port}", "--auth-key", f"{KEY},{SECRET}",
                   "--config", os.devnull, "--dir-cache-time", "0s", str(self.root)]  # fmt: skip
        self.process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=_die_with_parent
        )
        deadline = time.monotonic() + START_DEADLINE_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    self.stop()
                    raise RuntimeError("rclone did not start") from None
                time.sleep(0.02)

    def environment(self, key: str = KEY, secret: str = SECRET) -> dict[str, str]:
        """The variables with which boto3 reaches this server, and nothing of the machine's own AWS settings."""
        return {
            "AWS_ENDPOINT_URL_S3": self.endpoint,
            "AWS_ACCESS_KEY_ID": key,
            "AWS_SECRET_ACCESS_KEY": secret,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }

    def client(self) -> Any:
        """A boto3 client of this server."""
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id=KEY,
            aws_secret_access_key=SECRET,
            config=Config(retries={"max_attempts": 1}, s3={"addressing_style": "path"}),
        )

    def put(self, bucket: str, key: str, data: bytes) -> str:
        """Stores an object (and makes its bucket); returns its ``s3://`` URI."""
        path = self.root / bucket / key
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(path.name + ".draft")
        draft.write_bytes(data)
        draft.rename(path)
        return f"s3://{bucket}/{key}"

    def stop(self) -> None:
        """Ends the server."""
        self.process.kill()
        self.process.wait()
        shutil.rmtree(self.root, ignore_errors=True)


class CuttingProxy:
    """Between a client and a server: passes bytes on, and cuts the connections that `cuts` names.

    `cuts` holds, for each connection to come, after how many bytes of its answer it is cut; None: not at all. Each
    connection serves one request, so that the next request is another connection.
    """

    def __init__(self, port: int) -> None:
        self.cuts: list[int | None] = []
        self._target = port
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self.connections = 0
        self.hook: Any = None  # called before a connection is passed on, with its number
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Accepts no more."""
        self._listening.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            self.connections += 1
            if self.hook is not None:
                self.hook(self.connections)
            cut = self.cuts.pop(0) if self.cuts else None
            threading.Thread(target=self._pass_on, args=(client, cut), daemon=True).start()

    def _pass_on(self, client: socket.socket, cut: int | None) -> None:
        with client, socket.create_connection(("127.0.0.1", self._target)) as server:
            threading.Thread(target=_copy, args=(client, server), daemon=True).start()
            left = cut if cut is not None else 2**62
            while left > 0 and (data := _received(server, min(left, 65536))):
                left -= len(data)
                try:
                    client.sendall(data)
                except OSError:
                    break
            for each in (client, server):  # a close alone waits for the thread that reads
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)


def _copy(source: socket.socket, target: socket.socket) -> None:
    while data := _received(source, 65536):
        try:
            target.sendall(data)
        except OSError:
            return


def _received(sock: socket.socket, count: int) -> bytes:
    try:
        return sock.recv(count)
    except OSError:
        return b""


class TlsFront:
    """A TLS end in front of a server: what it gets it passes on, as a load balancer does.

    Args:
        certificate: a certificate and its key in one PEM file.
    """

    def __init__(self, target: int, certificate: Path) -> None:
        self.port = free_port()
        self._target = target
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificate)
        self._loop = asyncio.new_event_loop()
        listening = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(listening,), daemon=True)
        self._thread.start()
        assert listening.wait(START_DEADLINE_S)

    def _run(self, listening: threading.Event) -> None:
        start = asyncio.start_server(self._serve, "127.0.0.1", self.port, ssl=self._context)
        self._loop.run_until_complete(start)
        listening.set()
        self._loop.run_forever()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back, far = await asyncio.open_connection("127.0.0.1", self._target)
        await asyncio.gather(self._pump(reader, far), self._pump(back, writer))

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    def close(self) -> None:
        """Listens no more."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(START_DEADLINE_S)
