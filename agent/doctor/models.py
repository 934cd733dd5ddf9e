"""Which model runtimes the interpreters have that functions may run on. Blocks: each is started once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from agent.doctor.findings import Finding, failed, ok, warned
from agent.environments.listing import listed
from agent.environments.policy import directory_of, interpreters_of
from agent.settings import Settings


def runtimes(settings: Settings | None) -> Iterator[Finding]:
    """One finding for each interpreter: the agent's own, those of the policy, and those that were made.

    Args:
        settings: None: the agent's own alone.
    """
    known = interpreters_of(settings.file) if settings else {}
    any_runtime = False
    for each in listed(known, directory_of(settings.file, None) if settings else Path(os.devnull)):
        name = f"runtimes of {', '.join(each.names) or each.python}"
        has = ", ".join(f"{runtime} {version}" for runtime, (_, version) in each.runtimes.items())
        any_runtime = any_runtime or bool(has)
        if each.problem:
            yield failed(name, each.problem, "Make it anew: marram runtime install RUNTIME")
        else:
            yield ok(name, has or "none")
    if not any_runtime:
        yield warned("runtimes", "No interpreter has a model runtime.", "Install one: marram runtime install onnx")
