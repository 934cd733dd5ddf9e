"""A worker process: started by the agent on any Python interpreter from 3.10 on, one function in it.

Started as ``INTERPRETER -I -c "import sys; sys.path.insert(0, DIR); from functions.worker import main; main()"`` with a
socket pair's end on MARRAM_FD and a second one for its pulse on MARRAM_PULSE_FD. It says READY once its code is
imported and its models are loaded and have run once; else FAILED with a code and a reason, and ends with 1. It ends
when it is told to STOP, or with the agent. MARRAM_ASIDE, where it is set aside as others are at work meanwhile, tells
which processors it comes back to when the function's code comes, see functions.aside.

What is imported here must be there in every interpreter: the rest comes in `main`, where its absence can be told.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import struct
import sys

OLDEST_PYTHON = (3, 10)
_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Serves one function until STOP or the agent's end; never returns."""
    gc.disable()  # what is imported lives on: to look through it time and again takes a tenth of a start
    sock = _inherited("MARRAM_FD")
    pulse = _inherited("MARRAM_PULSE_FD")
    processors = [int(each) for each in os.environ.pop("MARRAM_ASIDE", "").split()]
    _end_with_the_agent()
    _leave_signals_to_the_agent()
    try:
        if sys.version_info < OLDEST_PYTHON:
            raise ImportError("Python 3.10 or later is needed")
        from functions import startup
    except ImportError as error:
        _say_incomplete(sock, error)
        sys.exit(1)
    startup.run(sock, pulse, processors)


def _inherited(name: str) -> socket.socket:
    sock = socket.socket(fileno=int(os.environ.pop(name)))
    sock.set_inheritable(False)  # a function's own children must not hold the connection open
    return sock


def _end_with_the_agent() -> None:
    """Has the kernel kill this process when its parent ends; an end before now shows as end of file."""
    try:
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    except (ImportError, OSError, AttributeError):
        pass  # the pulse's thread sees the end of file then


def _leave_signals_to_the_agent() -> None:
    """SIGTERM and SIGINT, which reach a whole process group, do nothing: the agent drains its workers by STOP.

    A handler rather than SIG_IGN, which a function's own child processes would inherit.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)


def _say_incomplete(sock: socket.socket, error: ImportError) -> None:
    """FAILED, packed by hand: msgpack is what is missing, most likely."""
    python = sys.executable
    version = ".".join(map(str, sys.version_info[:3]))
    message = (
        f"{python} (Python {version}) cannot run a worker: {error}. It needs Python 3.10 or later, msgpack and numpy: "
        f"{python} -m pip install msgpack numpy"
    ).encode()
    code = b"INTERPRETER_INCOMPLETE"
    failed = b"\x93\x0b" + b"\xd9" + bytes([len(code)]) + code + b"\xda" + struct.pack(">H", len(message)) + message
    sock.sendall(struct.pack("<II", len(failed), 0) + failed)
