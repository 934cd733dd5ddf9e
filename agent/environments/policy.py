"""Where environments are kept, and what the settings say of them. Blocks; for the command line."""

from __future__ import annotations

from pathlib import Path

from agent.errors import ConfigError


def directory_of(config: Path, given: Path | None) -> Path:
    """`given`, or the folder beside the state directory, named as it with ``-runtimes`` behind.

    It is not in the state directory, of which a worker sees no more than its own files.

    Raises:
        ConfigError: the settings cannot be read, and they are needed.
    """
    if given is not None:
        return given.absolute()
    from agent.settings.reader import load

    state = load(config).state
    return state.with_name(f"{state.name}-runtimes")


def interpreters_of(config: Path) -> dict[str, Path]:
    """policy.interpreters, absolute; none where there are no settings.

    Raises:
        ConfigError: there are settings, and they are wrong.
    """
    if not config.exists():
        return {}
    from agent.settings.reader import load

    settings = load(config)
    return {name: settings.file.parent / path for name, path in settings.policy.interpreters.items()}


def line_for(config: Path, name: str, python: Path) -> str | None:
    """The line that topics.yaml needs for an interpreter, unless it has it."""
    try:
        known = interpreters_of(config)
    except ConfigError:
        known = {}
    if known.get(name) == python:
        return None
    every = {**{each: str(path) for each, path in known.items()}, name: str(python)}
    return f"interpreters: {{{', '.join(f'{each}: {path}' for each, path in every.items())}}}"
