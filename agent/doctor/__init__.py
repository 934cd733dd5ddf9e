"""What a newcomer's machine lacks: `marram doctor` looks at everything that the agent relies on. Blocks.

Nothing is changed: what is written for a measurement is taken away again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from agent.doctor import brokers, machine, models, store
from agent.doctor.findings import Finding, failed
from agent.errors import AgentError
from agent.settings import Settings
from agent.settings.reader import load


def examine(config: Path) -> Iterator[Finding]:
    """Looks at one thing after the other, and tells of each as it is found."""
    yield from _guarded("python", machine.python)
    yield from _guarded("clock", machine.clock)
    yield from _guarded("isolation", machine.isolation)
    try:
        settings = load(config)
    except AgentError as error:
        yield failed("settings", error.message, error.remedy, error.code)
        yield from _guarded("runtimes", lambda: models.runtimes(None))
        return
    yield Finding("settings", "ok", f"{settings.file}: core {settings.core}")
    yield from _of(settings)


def _of(settings: Settings) -> Iterator[Finding]:
    parts: Sequence[tuple[str, Callable[[], Iterator[Finding]]]] = (
        ("disk", lambda: machine.disk(settings.state, settings.fetch.free_bytes)),
        ("agent", lambda: brokers.agent(settings)),
        ("brokers", lambda: brokers.links(settings)),
        ("certificates", lambda: brokers.certificates(settings)),
        ("runtimes", lambda: models.runtimes(settings)),
        ("store", lambda: store.buckets(settings)),
    )
    for name, look in parts:
        yield from _guarded(name, look)


def _guarded(name: str, look: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """What `look` finds; that it cannot look is a finding as well."""
    try:
        yield from look()
    except AgentError as error:
        yield failed(name, error.message, error.remedy, error.code)
    except OSError as error:
        yield failed(name, f"It cannot be looked at: {error}.", "Try as the user that the agent runs as.")
