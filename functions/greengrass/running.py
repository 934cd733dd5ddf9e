"""A worker with V1 Lambda code, from its configuration to its end."""

from __future__ import annotations

import io
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn

from functions import frames
from functions.config import Config
from functions.errors import StartError
from functions.greengrass import code, core
from functions.greengrass.entry import Entry
from functions.greengrass.serving import LambdaServer
from functions.pulse import Pulse
from functions.runtimes.calling_home import stay_home


def run(
    sock: socket.socket,
    reader: frames.FrameReader,
    config: Config,
    entry: Entry,
    *,
    pulse: Pulse,
    received: Iterable[frames.Frame],
    facts: Mapping[str, Any],
    end: Callable[[int], NoReturn],
) -> NoReturn:
    """Imports the code, serves until STOP or the end of the stream, and ends the process.

    Args:
        received: frames that were read already.
        facts: what READY tells beside what is known here.
        end: ends the process with a code.
    """
    assert config.code is not None
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # what a function prints is seen at once
    stay_home()
    began_s = time.monotonic()

    def announce() -> None:
        took = {"import_s": round(time.monotonic() - began_s, 4), "load_s": 0.0, "warm_up_s": 0.0}
        ready = {"models": [], "max_batch": 1, "settles_late": False, **took, **facts}
        server.say(frames.pack([frames.READY, ready]))

    server = LambdaServer(sock, reader, config, announce, end)
    pulse.before = server.flush_if_free
    core.become_current(server.lambda_core)
    code.prepare(config, config.code)
    os.chdir(config.code)  # where V1 code finds the files beside it
    server.listen(received)
    try:
        server.imported(code.load(config, config.code, entry))
    except StartError as error:
        _give_up(server, error)
        end(1)
    try:
        server.serve()
    except (BrokenPipeError, ConnectionResetError):
        pass  # the agent is gone
    end(0)


def _give_up(server: LambdaServer, error: StartError) -> None:
    """Says why there will be no handler; once READY was said, the worker counts as lost and the log has the reason."""
    if server.announced:
        traceback.print_exception(error.__cause__ or error)
        print(error.message, file=sys.stderr, flush=True)
    else:
        server.say(frames.pack([frames.FAILED, error.code, error.message]))
