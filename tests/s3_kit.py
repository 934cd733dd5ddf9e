"""A real S3 server (moto's) on a free loopback port, as a child process, for tests that fetch.

Import the fixture `s3_server` (one server for the test session): ``s3_server.put("models", "activity.tar.gz", data)``
gives the object's URI, ``s3_server.environment()`` the variables with which an agent reaches it.
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config

START_DEADLINE_S = 60.0
PR_SET_PDEATHSIG = 1  # linux/prctl.h
REQUEST_LINE = re.compile(r'"(?:\x1b\[[0-9;]*m)*([A-Z]+) (\S+) HTTP/[0-9.]+(?:\x1b\[0m)?" (\d+)')


def free_port() -> int:
    """A TCP port on 127.0.0.1 that nothing listened on a moment ago."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class S3Server:
    """moto's server as a child of the tests; buckets are made on first use.

    Args:
        authenticate: check signatures and IAM rights of every request after the first `authenticate` ones (moto's own
            INITIAL_NO_AUTH_ACTION_COUNT); None accepts any credentials, which is what moto does by default.
    """

    def __init__(self, *, authenticate: int | None = None) -> None:
        self.port = free_port()
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self.log = Path(tempfile.mkstemp(prefix="moto-", suffix=".log")[1])
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        if authenticate is not None:
            environment["INITIAL_NO_AUTH_ACTION_COUNT"] = str(authenticate)
        with self.log.open("wb") as log:
            command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, env=environment, preexec_fn=_die_with_parent
            )
        self._buckets: set[str] = set()
        self._wait_until_up()

    def _wait_until_up(self) -> None:
        deadline = time.monotonic() + START_DEADLINE_S
        while True:
            try:
                urllib.request.urlopen(f"{self.endpoint}/moto-api/data.json", timeout=5).close()
                return
            except OSError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    self.stop()
                    raise RuntimeError(f"moto did not start:\n{self.log.read_text()}") from None
                time.sleep(0.05)

    def environment(self, key: str = "testing", secret: str = "testing") -> dict[str, str]:
        """The variables with which boto3 reaches this server, and nothing of the machine's own AWS settings."""
        return {
            "AWS_ENDPOINT_URL_S3": self.endpoint,
            "AWS_ENDPOINT_URL_SAGEMAKER": self.endpoint,
            "AWS_ENDPOINT_URL_SECRETS_MANAGER": self.endpoint,
            "AWS_ACCESS_KEY_ID": key,
            "AWS_SECRET_ACCESS_KEY": secret,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }

    def client(self, service: str = "s3", key: str = "testing", secret: str = "testing") -> Any:
        """A boto3 client of this server."""
        return boto3.client(  # type: ignore[call-overload]
            service,
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id=key,
            aws_secret_access_key=secret,
            config=Config(retries={"max_attempts": 1}),
        )

    def put(self, bucket: str, key: str, data: bytes) -> str:
        """Stores an object (and makes its bucket); returns its ``s3://`` URI."""
        client = self.client()
        if bucket not in self._buckets:
            client.create_bucket(Bucket=bucket)
            self._buckets.add(bucket)
        client.put_object(Bucket=bucket, Key=key, Body=data)
        return f"s3://{bucket}/{key}"

    def delete(self, bucket: str, key: str) -> None:
        """Removes an object."""
        self.client().delete_object(Bucket=bucket, Key=key)

    def requests(self, path: str = "") -> list[tuple[str, str, int]]:
        """(method, path, status) of the requests so far whose path holds `path`, oldest first."""
        found = REQUEST_LINE.findall(self.log.read_text(errors="replace"))
        return [(method, where, int(status)) for method, where, status in found if path in where]

    def stop(self) -> None:
        """Ends the server; it may already have ended."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.log.unlink(missing_ok=True)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """One server for the whole test session; use a bucket name of your own."""
    server = S3Server()
    yield server
    server.stop()
