"""`marram run`: the agent until SIGTERM or Ctrl-C. What is imported here is what the agent holds for months."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

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
    from agent import loop
    from agent.settings.reader import load

    log_at(level)
    settings = load(config, strict=False)
    import logging

    for warning in settings.warnings:
        logging.getLogger("agent").warning("%s", warning)

    async def work() -> None:
        from agent.app import Agent

        await Agent(settings).run()

    loop.run(work())
    return 0


def log_at(level: str) -> None:
    """Has everything of this level and above written to standard error."""
    import logging

    logging.Formatter.converter = time.gmtime
    logging.basicConfig(
        level=level.upper(), stream=sys.stderr, format="%(asctime)sZ %(levelname)s %(name)s: %(message)s"
    )
