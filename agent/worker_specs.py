"""What the workers of a group are started with: their interpreter, models, secrets, directories, user and bounds.

Each generation of workers gets a directory of its own, state/run/<function>/<group>-<n>/, in which its models'
DestinationPaths lead to concrete trees: it never resolves `current`, so a worker on trial cannot read the old model,
nor a draining one the new. A group that is started again while workers of its first time still drain is another
generation, and has other directories.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import field
from pathlib import Path
from typing import Any

from agent.deployment import secrets
from agent.deployment.definition import Function
from agent.deployment.owners import check_local, gids_of, groups_of, withheld_from
from agent.deployment.store import Group
from agent.inference import confinement, launching, views
from agent.inference.disk import DiskWatch
from agent.inference.pool import Pool
from agent.inference.requests import FunctionCall, Origin
from agent.inference.worker_python import model_config, python_of
from agent.instance import MARK
from agent.settings import Settings
from agent.values import dataclass

log = logging.getLogger(__name__)

PREFIX = "AWS_GG_RESOURCE_PREFIX"
MXNET_ENGINE = "MXNET_ENGINE_TYPE"


@dataclass(frozen=True, slots=True, eq=False)
class Generation:
    """The workers of one start of a group; `number` tells it from the group's other starts.

    It is warm (with workers, without requests), routed to, or ending.
    """

    group: Group
    number: int
    secrets: secrets.Opened = field(repr=False)
    pools: list[Pool] = field(default_factory=list)
    disks: dict[Pool, DiskWatch] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)  # what its workers could not make of their view


class Specs:
    """Makes the specifications of workers.

    Args:
        called: takes what functions ask of the agent.
    """

    def __init__(self, settings: Settings, called: Callable[[FunctionCall], None] | None) -> None:
        self._settings = settings
        self._called = called
        self._path = launching.make_path(launching.path_in(settings.state))

    def home(self, function: Function) -> Path:
        """What the function keeps between its workers, and over deployments."""
        return self._settings.state / "data" / function.id

    def of(self, function: Function, generation: Generation, origin: Origin) -> launching.Spec:
        """What a worker of the function is started with; lays its view and its directory. Blocks for a moment.

        Raises:
            AgentError: what the function asks for cannot be had here.
            OSError: the disk does not take it.
        """
        state, view = self._settings.state, self.view(function.id, generation)
        # What can fail comes before the view, which is laid once.
        interpreter = python_of(function, generation.group, self._settings)
        deployment = generation.group.deployment
        user = confinement.user_of(function, deployment.functions, gids_of(function, deployment))
        told_secrets = generation.secrets.of(function)
        models = views.models_of(function, generation.group, state)
        check_local(function, deployment, self._settings.policy.local)
        _note_view(function.id, generation, "", withheld_from(function, deployment))
        seen = (*models, *views.volumes_of(function, generation.group))
        views.lay(view, seen)
        home = self.home(function)
        home.mkdir(parents=True, exist_ok=True)
        for own in (home, *(each.tree for each in models if each.writable)):
            confinement.give(own, user)
        code = generation.group.code.get(function.id)
        isolation = confinement.asked(
            function, user, self._settings, home=home, seen=seen, devices=views.devices_of(function, generation.group),
            read=(self._path, view, *([code.tree] if code else ())),
        )  # fmt: skip
        return launching.Spec(
            origin=origin,
            interpreter=interpreter,
            config={
                **self._config(function, generation.group, origin),
                "models": [model_config(model, generation.group) for model in models],
                "secrets": told_secrets,
                "mounts": views.mounts(state, home, seen),
                "state_dir": str(home),
                "isolation": isolation,
            },
            path=self._path,
            directory=home,
            groups=() if user else groups_of(function, deployment),
            environment={
                **launching.base_environment(),
                "HOME": str(home),
                **_variables(function),
                PREFIX: str(view),
                MARK: str(self._settings.state),
            },
            memory_kb=function.memory_kb,
            start_s=function.start_timeout_s,
            called=self._called,
            own_processes=function.contained,
            seen=functools.partial(_note_view, function.id, generation),
        )

    def _config(self, function: Function, group: Group, origin: Origin) -> dict[str, Any]:
        code = group.code.get(function.id)
        return {
            "function": function.id,
            "code": str(code.tree) if code else None,
            "endpoint": function.endpoint,
            "encoding": function.encoding,
            "meta": function.meta,
            "model": origin.model,
            "deployment": origin.deployment,
            "batch": {"max_size": function.batch.max_size, "max_delay_ms": function.batch.max_delay_ms},
            "handler": function.handler,
            "arn": function.arn,
            "core": self._settings.core,
            "memory_kb": function.memory_kb,
            "capture": function.capture is not None,
            "concurrency": function.concurrency,
            "timeout_s": function.timeout_s,
            "arguments": list(function.arguments),
        }

    def view(self, function: str, generation: Generation) -> Path:
        """The directory in which the function's models lie for this generation."""
        return self._settings.state / "run" / function / f"{generation.group.number}-{generation.number}"


def _note_view(function: str, generation: Generation, _tier: str, warnings: Sequence[str]) -> None:
    """Keeps and logs what a worker could not make of its view of the files; the same is said once for all of them."""
    for text in (f"the function {function}: {each}" for each in warnings):
        if text not in generation.remarks:
            log.warning("%s", text)
            generation.remarks.append(text)


def origin_of(function: Function, group: Group) -> Origin:
    """What the function's results say about where they come from."""
    model = function.policies[0].resource if function.policies else None
    version = f"sha256:{group.objects[model].hex}" if model else None
    return Origin(function.id, model, version, group.deployment.id)


def _variables(function: Function) -> dict[str, str]:
    """The function's environment variables.

    MXNet 1.9.1 refuses the engine name that Greengrass V1 documents for the Raspberry Pi; it means NaiveEngine.
    """
    variables = dict(function.variables)
    if variables.get(MXNET_ENGINE) == "NativeEngine":
        log.warning("function %s: %s=NativeEngine is passed on as NaiveEngine", function.id, MXNET_ENGINE)
        variables[MXNET_ENGINE] = "NaiveEngine"
    return variables
