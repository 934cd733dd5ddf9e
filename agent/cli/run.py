"""`marram run`: the agent until SIGTERM or Ctrl-C. What is imported here is what the agent holds for months."""

from __future__ import annotations

import contextlib
import gc
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from agent.imports import left_out, postponed

if TYPE_CHECKING:
    from agent.inference.spare import Spare

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
    gc.disable()  # what is imported lives on: to look through it time and again takes a tenth of a start
    with lean(encrypted=False):
        from agent.settings import nodes

        begun = nodes.begin(config)
        # Imported while a child reads the file.
        import logging

        from agent.settings.reader import load

    log_at(level)
    settings = load(config, strict=False, begun=begun)
    for warning in settings.warnings:
        logging.getLogger("agent").warning("%s", warning)
    encrypted = any(link is not None and link.tls for link in (settings.local, settings.cloud))
    with lean(encrypted=encrypted):
        from agent import instance

        instance.claim(settings.state)
        spare = _spare(settings.state)
        # Imported while its Python starts.
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


@contextlib.contextmanager
def lean(*, encrypted: bool) -> Iterator[None]:
    """Within it, libraries are imported without what they come to only in cases that are not ours.

    inspect, for dataclasses and asyncio, takes 1 MB and 6 ms with ast and dis; bz2 and lzma, for shutil's archives, 0.4
    MB; ssl, which asyncio and paho do without where it is not there, 0.7 MB and 6 ms.

    Args:
        encrypted: whether a link is, so that ssl is needed.
    """
    ssl = contextlib.nullcontext() if encrypted else left_out("ssl")
    with postponed("inspect"), postponed("bz2"), postponed("lzma"), ssl:
        yield


def log_at(level: str) -> None:
    """Has everything of this level and above written to standard error."""
    import logging

    logging.Formatter.converter = time.gmtime
    logging.basicConfig(
        level=level.upper(), stream=sys.stderr, format="%(asctime)sZ %(levelname)s %(name)s: %(message)s"
    )
