"""Has this process stop after each call that changes what is on the disk, until the test has taken a copy of the disk.

It is run as text before anything else is imported: Python 3.10's pathlib keeps its own references to these calls. The
test listens on the Unix socket that MARRAM_CUTS names; each step is one line, answered with one byte.
"""

import os
import socket
import threading

_NAMES = ("fsync", "fdatasync", "rename", "replace", "symlink", "unlink", "rmdir", "mkdir", "ftruncate")
_turn = threading.Lock()
_wire = socket.socket(socket.AF_UNIX)
_wire.connect(os.environ["MARRAM_CUTS"])


def _hooked(name, call):
    def stepped(*args, **more):
        result = call(*args, **more)
        with _turn:
            _wire.sendall(f"{name} {' '.join(str(a) for a in args)}\n".encode())
            if not _wire.recv(1):
                os._exit(1)
        return result

    return stepped


for _name in _NAMES:
    setattr(os, _name, _hooked(_name, getattr(os, _name)))
