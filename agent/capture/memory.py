"""What capture remembers over a restart: the day's count, and what drift is compared with. One small file. Blocks."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any, Final

from agent.deployment import durable

log = logging.getLogger(__name__)

FILE: Final = "capture.json"


def read(state: Path) -> dict[str, Any]:
    """What `write` wrote last; empty where there is nothing that can be read."""
    try:
        found = json.loads((state / FILE).read_bytes())
        return found if isinstance(found, dict) else {}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        log.warning("what capture remembered cannot be read, and it begins anew: %s", error)
        return {}


def write(state: Path, values: dict[str, Any]) -> bool:
    """Puts `values` on the disk, wholly or not at all; whether they are."""
    try:
        durable.write(state / FILE, json.dumps(values).encode())
    except OSError as error:
        log.warning("what capture is to remember cannot be written: %s", error)
        return False
    return True
