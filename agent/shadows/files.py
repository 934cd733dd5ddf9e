"""Shadows on disk: a file each, whole after a power cut. Blocks: for a thread of its own, which is its only user.

    shadows/<thing>.json       {"version", "state", "metadata", "deleted"}

A file that cannot be read is set aside, never a failure to start, and the shadow begins anew.
"""

from __future__ import annotations

import json
import logging
import re
from collections import OrderedDict
from dataclasses import asdict
from pathlib import Path
from typing import Final

from agent.deployment import durable
from agent.shadows.document import Shadow, ShadowError

log = logging.getLogger(__name__)

MAX_SHADOWS: Final = 10_000
CACHED: Final = 256
_OF_A_NAME: Final = re.compile(r"[:/]")  # thing names have colons, which are no use in file names everywhere


class ShadowFiles:
    """The shadows below a state directory.

    Args:
        state: the state directory.
    """

    def __init__(self, state: Path) -> None:
        self._directory = state / "shadows"
        self._cache: OrderedDict[str, Shadow] = OrderedDict()

    def read(self, thing: str) -> Shadow:
        """The thing's shadow; one that is not there has version 0."""
        if thing in self._cache:
            self._cache.move_to_end(thing)
            return self._cache[thing]
        return self._remember(thing, self._read(self._file(thing)))

    def write(self, thing: str, shadow: Shadow) -> None:
        """Keeps the shadow; durable at return.

        Raises:
            OSError: the disk does not take it. ShadowError: there are too many.
        """
        self._directory.mkdir(exist_ok=True)
        file = self._file(thing)
        if not file.exists() and sum(1 for _ in self._directory.iterdir()) >= MAX_SHADOWS:
            raise ShadowError(429, f"This core keeps at most {MAX_SHADOWS} shadows")
        self._cache.pop(thing, None)
        durable.write(file, json.dumps(asdict(shadow)).encode())
        self._remember(thing, shadow)

    def _file(self, thing: str) -> Path:
        return self._directory / (_OF_A_NAME.sub("%3A", thing) + ".json")

    def _read(self, file: Path) -> Shadow:
        try:
            values = json.loads(file.read_bytes())
            return Shadow(int(values["version"]), dict(values["state"]), dict(values["metadata"]), values["deleted"])
        except FileNotFoundError:
            return Shadow()
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.error("the shadow %s cannot be read (%s): it is set aside", file, error)
            aside = file.with_suffix(".damaged")
            if file.exists():
                file.replace(aside)
            return Shadow()

    def _remember(self, thing: str, shadow: Shadow) -> Shadow:
        self._cache[thing] = shadow
        if len(self._cache) > CACHED:
            self._cache.popitem(last=False)
        return shadow
