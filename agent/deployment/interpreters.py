"""Which of the policy's interpreters runs a function: the one that it names, or the one named as its runtime is. Pure.

``policy.interpreters: {mxnet: /path/to/bin/python}`` so serves each function with an MXNet model, and no document need
know how a core's environments are called.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from agent.deployment.definition import Deployment, Function


def interpreter_of(
    function: Function, deployment: Deployment, known: Collection[str], detected: Mapping[str, str] | None = None
) -> str | None:
    """The name of the function's interpreter; None: the agent's own.

    Args:
        known: the names in policy.interpreters.
        detected: the runtimes of its models that do not say it, by resource Id; None: they are not here yet.

    Models whose runtimes lead to different interpreters decide nothing.
    """
    if function.interpreter is not None:
        return function.interpreter
    if function.runtime is not None:
        return function.runtime if function.runtime in known else None
    stated = (
        deployment.resource(policy.resource).runtime or (detected or {}).get(policy.resource)
        for policy in function.policies
    )
    found = {runtime for runtime in stated if runtime in known}
    return found.pop() if len(found) == 1 else None
