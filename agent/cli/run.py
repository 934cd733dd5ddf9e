"""`marram run`: the agent until SIGTERM or Ctrl-C. What is imported here is what the agent holds for months.

Each import stands where it holds up least: what is not needed for the settings, while a child reads their file; what is
not needed for the first worker, while that worker's Python starts.
"""

from __future__ import annotations

import gc
import sys

from agent import yaml_nodes

TYPE_CHECKING = False  # that of typing, without typing
if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from typing import Final

    from agent.inference.spare import Spare

DEFAULT_CONFIG: Final = "topics.yaml"
LOG_LEVELS: Final = ("debug", "info", "warning", "error")


def plain(arguments: Sequence[str]) -> tuple[str, str] | None:
    """The file of the settings and the level of the log; None where it takes argparse to tell."""
    config, level = DEFAULT_CONFIG, "info"
    pairs = zip(arguments[::2], arguments[1::2], strict=False)
    if len(arguments) % 2:
        return None
    for option, value in pairs:
        if option == "--config" and not value.startswith("-"):
            config = value
        elif option == "--log-level" and value in LOG_LEVELS:
            level = value
        else:
            return None
    return config, level


def run(file: str | Path, level: str) -> int:
    """Runs the agent of these settings until it is told to end."""
    gc.disable()  # what is imported lives on: to look through it time and again takes a tenth of a start
    begun = yaml_nodes.begin(file)
    from agent.imports import lean

    with lean(encrypted=False):
        from pathlib import Path

        from agent.settings.reader import load

    settings = load(Path(file), strict=False, begun=begun)
    encrypted = any(link is not None and link.tls for link in (settings.local, settings.cloud))
    with lean(encrypted=encrypted):
        from agent import instance

        left_over = instance.claim(settings.state)
        spare = _spare(settings.state)
        import logging

        log_at(level)
        for warning in settings.warnings:
            logging.getLogger("agent").warning("%s", warning)
        for pid in left_over:
            logging.getLogger("agent").warning("ended process %s, left by an earlier agent", pid)
        import signal

        from agent import loop
        from agent.beginning import Beginning

    async def work() -> None:
        beginning = Beginning(settings, spare)
        await beginning.start()
        # While the workers start.
        gc.collect()  # 0.4 MB, which the next imports use again
        with lean(encrypted=encrypted):
            from agent.app import Agent
        await Agent(beginning).run()

    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until the agent has a handler: asyncio's would bring in inspect
    loop.run(work())
    return 0


def _spare(state: Path) -> Spare | None:
    """A process for a worker that will be started soon: of a core that has something to run."""
    from agent.inference import launching, spare
    from agent.instance import MARK

    if not spare.pays() or not (state / "current").is_symlink():  # see agent.deployment.store
        return None
    return spare.Spare(launching.make_path(launching.path_in(state)), {MARK: str(state)})


def log_at(level: str) -> None:
    """Has everything of this level and above written to standard error."""
    import logging
    import time

    logging.Formatter.converter = time.gmtime
    logging.basicConfig(
        level=level.upper(), stream=sys.stderr, format="%(asctime)sZ %(levelname)s %(name)s: %(message)s"
    )
