"""The Python that a function's workers run on, and what they are told of their models."""

from __future__ import annotations

import sys
from typing import Any

from agent.deployment.definition import Function
from agent.deployment.interpreters import interpreter_of
from agent.deployment.store import Group
from agent.errors import AgentError
from agent.inference import views
from agent.settings import Settings
from functions.model_files import model_directory, names_in, runtimes_of


def python_of(function: Function, group: Group, settings: Settings) -> str:
    """The path of the interpreter for the function's workers. Blocks for next to no time.

    Raises:
        AgentError: INTERPRETER_UNKNOWN.
    """
    known = settings.policy.interpreters
    name = interpreter_of(function, group.deployment, known, _detected(function, group) if known else None)
    if name is None:
        return sys.executable
    if name not in known:
        raise AgentError(
            "INTERPRETER_UNKNOWN",
            f"Function {function.id} names the interpreter {name!r}; topics.yaml has none.",
            f"Add {name!r} to policy.interpreters.",
        )
    return str(settings.file.parent / known[name])


def _detected(function: Function, group: Group) -> dict[str, str]:
    """The runtimes of the function's models by their files, where these leave no doubt."""
    found: dict[str, str] = {}
    for policy in function.policies:
        try:
            hits = runtimes_of(names_in(model_directory(group.objects[policy.resource].tree)))
        except OSError:
            continue  # the worker will say what is wrong with it
        if len(hits) == 1:
            found[policy.resource] = hits[0]
    return found


def model_config(model: views.Seen, group: Group) -> dict[str, Any]:
    """What a worker is told of one model, see functions.config."""
    resource, found = group.deployment.resource(model.resource), group.objects[model.resource]
    return {
        "id": resource.id,
        "path": str(model.tree),
        "version": found.version,
        "runtime": resource.runtime,
        "options": dict(resource.options),
        "requires": dict(resource.requires),
    }
