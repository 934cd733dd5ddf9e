"""`marram run`: the agent until SIGTERM or Ctrl-C. What is imported here is what the agent holds for months."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from agent.imports import left_out
from agent.settings import nodes

DEFAULT_CONFIG: Final = Path("topics.yaml")
LOG_LEVELS: Final = ("debug", "info", "warning", "error")


def plain(arguments: Sequence[str]) -> tuple[Path, str] | None:
    """The file of the settings and the level of the log; None where it takes argparse to tell."""
    config, level = DEFAULT_CONFIG, "info"
    pairs = zip(arguments[::2], arguments[1::2], strict=False)
    if len(arguments) % 2:
        return None
    for option, value in pairs:
        if option == "--config" and not value.startswith("-"):
            config = Path(value)
        elif option == "--log-level" and value in LOG_LEVELS:
            level = value
        else:
            return None
    return config, level


def run(config: Path, level: str) -> int:
    """Runs the agent of these settings until it is told to end."""
    begun = nodes.begin(config)
    # Imported while a child reads the file.
    import logging

    from agent.settings.reader import load

    log_at(level)
    settings = load(config, strict=False, begun=begun)
    for warning in settings.warnings:
        logging.getLogger("agent").warning("%s", warning)
    encrypted = any(link is not None and link.tls for link in (settings.local, settings.cloud))

    def lean() -> contextlib.AbstractContextManager[None]:
        """Keeps ssl out, 0.7 MB and 6 ms, where no link is encrypted: asyncio and paho do without what is not there."""
        return contextlib.nullcontext() if encrypted else left_out("ssl")

    with lean():
        from agent import loop
        from agent.beginning import Beginning

    async def work() -> None:
        beginning = Beginning(settings)
        await beginning.start()
        with lean():
            from agent.app import Agent  # while the workers start
        await Agent(beginning).run()

    loop.run(work())
    return 0


def log_at(level: str) -> None:
    """Has everything of this level and above written to standard error."""
    import logging

    logging.Formatter.converter = time.gmtime
    logging.basicConfig(
        level=level.upper(), stream=sys.stderr, format="%(asctime)sZ %(levelname)s %(name)s: %(message)s"
    )
