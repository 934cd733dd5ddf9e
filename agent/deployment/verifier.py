"""The verifier: a short-lived child that says which trusted key signed a document, and owns the cryptography for it.

It reads one request as JSON on stdin, ``{"parent", "message", "signatures": [[key id, signature]], "keys"}`` with bytes
as base64, and writes ``{"signer": key id or null}`` on stdout. Exit code 0 with that line is a verdict, nothing else.
"""

from __future__ import annotations

import base64
import ctypes
import json
import os
import resource
import signal
import sys
from typing import Any, Final

from agent.trust.keys import signer

MAX_MEMORY_BYTES: Final = 1024**3  # of address space; a request of 16 MB needs some 150 MiB of it
PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h


def main() -> int:
    """Answers the request on stdin."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is the agent's to handle
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    request = json.loads(sys.stdin.buffer.read())
    if os.getppid() != request["parent"]:
        return 1
    print(json.dumps({"signer": verdict(request)}), flush=True)
    return 0


def verdict(request: dict[str, Any]) -> str | None:
    """The id of the key that signed; None: none of them did. Pure."""
    signatures = [(id, base64.b64decode(value)) for id, value in request["signatures"]]
    keys = [base64.b64decode(key) for key in request["keys"]]
    return signer(base64.b64decode(request["message"]), signatures, keys)


if __name__ == "__main__":
    sys.exit(main())
