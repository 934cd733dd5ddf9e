"""Interface versions."""

from __future__ import annotations


def parse_version(version: str) -> tuple[int, int]:
    """``"1.5"`` as (1, 5).

    Raises:
        ValueError: it is no such text.
    """
    major, minor = str(version).split(".")[:2]
    return int(major), int(minor)
