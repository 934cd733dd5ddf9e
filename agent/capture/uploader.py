"""The uploader: a child of the agent that puts samples' payloads into S3, so that boto3's memory goes with it.

It reads one job a line on stdin, ``{"name", "file", "bucket", "key", "type", "role"}`` (role:
whose AWS credentials are used, as `AwsRole`, or null), and answers each with a line on stdout:
``{"name"}`` once the object is there, else with ``"error": {"code", "message", "transient"}``. It ends with its stdin,
and with the agent. It may be killed at any moment.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any, Final

from agent.capture import s3_objects
from agent.deployment.sources.role import assume
from agent.errors import AgentError, TransientError
from agent.settings import AwsRole

NICENESS: Final = 10
MAX_MEMORY_BYTES: Final = 2 * 1024**3  # of address space: boto3 and its threads take some 300 MiB of it
PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h


def main() -> int:
    """Does the jobs on stdin."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is the agent's to handle
    os.nice(NICENESS)
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    for line in sys.stdin:
        print(json.dumps(_done(json.loads(line))), flush=True)
    return 0


def _done(job: dict[str, Any]) -> dict[str, Any]:
    try:
        assume(AwsRole(**job["role"]) if job.get("role") else None)
        s3_objects.put(Path(job["file"]), job["bucket"], job["key"], job["type"])
    except AgentError as error:
        return {"name": job["name"], "error": _told(error.code, error.text, isinstance(error, TransientError))}
    except OSError as error:
        return {"name": job["name"], "error": _told("UPLOAD_UNREACHABLE", str(error), True)}
    return {"name": job["name"]}


def _told(code: str, message: str, transient: bool) -> dict[str, Any]:
    return {"code": code, "message": message, "transient": transient}


if __name__ == "__main__":
    sys.exit(main())
