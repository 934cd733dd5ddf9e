"""The opener: a short-lived child that opens a group's sealed secrets, and owns the cryptography for it.

It reads one request as JSON on stdin, ``{"parent", "state", "secrets": [[id, ARN, file]]}``, and writes
``{"opened": {id: secret}}`` or ``{"code", "message", "remedy"}`` on stdout, which only the agent reads.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any, Final

from agent.deployment.vault import Vault
from agent.errors import AgentError, IntegrityError

PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h
PR_SET_DUMPABLE: Final = 4


def main() -> int:
    """Answers the request on stdin."""
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    libc.prctl(PR_SET_DUMPABLE, 0)  # no core file with secrets in it
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is the agent's to handle
    request = json.loads(sys.stdin.buffer.read())
    if os.getppid() != request["parent"]:
        return 1
    print(json.dumps(_answer(request)), flush=True)
    return 0


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    vault = Vault(Path(request["state"]))
    try:
        opened = {id: vault.open(arn, _read(arn, file)) for id, arn, file in request["secrets"]}
    except AgentError as error:
        return {"code": error.code, "message": error.message, "remedy": error.remedy}
    return {"opened": opened}


def _read(arn: str, file: str) -> bytes:
    try:
        return Path(file).read_bytes()
    except OSError as error:
        text = f"the secret {arn} cannot be read: {error.strerror}"
        raise IntegrityError("SECRET_UNREADABLE", text, "Deploy the group again.") from error


if __name__ == "__main__":
    sys.exit(main())
