"""Reads a document's Functions: V1's shapes and rules, and what the key ``Marram`` adds. Pure; notes every problem."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from typing import Any, Final

from agent.deployment.captures import read_capture
from agent.deployment.definition import (
    CONTAINER,
    ENDPOINT_ARN,
    NO_CONTAINER,
    AccessPolicy,
    Batch,
    Function,
    LocalResource,
    Resource,
    SecretResource,
)
from agent.deployment.execution import Execution, read_confinement, read_execution, read_lifecycle
from agent.deployment.fields import FORBIDDEN, UNSUPPORTED, Fields, nearest, shown
from agent.deployment.model_runtimes import runtime_name
from agent.deployment.resources import ID, ID_WORDS, AnyResource, read_code

MAX_FUNCTIONS: Final = 200  # V1: functions a group
MAX_POLICIES: Final = 20  # V1: resources a function
MAX_TIMEOUT_S: Final = 86_400.0
MAX_BATCH: Final = 4096
START_TIMEOUT_S: Final = 120.0  # TensorFlow on a Raspberry Pi takes most of a minute
MAX_START_TIMEOUT_S: Final = 600.0  # a deployment gives all its workers together no more
FOLDER: Final = r"[A-Za-z0-9_-]{1,140}"
LAMBDA_ARN: Final = re.compile(
    r"arn:aws[a-z-]*:lambda:[a-z0-9-]*:[0-9]*:function:(?P<name>[A-Za-z0-9_-]{1,140})(:[A-Za-z0-9$_-]{1,128})?"
)
# What V1's core ran as functions of its own: GGIPDetector, GGCloudSpooler, ..
SYSTEM_ARN: Final = re.compile(r"arn:aws[a-z-]*:lambda:::function:GG[A-Za-z0-9_-]*(:[A-Za-z0-9$_-]{1,128})?")
Known = Mapping[str, AnyResource]
RESERVED_VARIABLE: Final = re.compile(r"AWS_GG_.*|MARRAM_.*|LD_PRELOAD|LD_AUDIT|PYTHON[A-Z]*")


def read_functions(document: Fields, resources: Known, interpreters: Mapping[str, str] | None) -> tuple[Function, ...]:
    """All functions of the document whose Ids could be read; `interpreters` None allows any."""
    functions: dict[str, Function] = {}
    default = _default_execution(document)
    for value, where in document.items("Functions", MAX_FUNCTIONS):
        arn = value.get("FunctionArn") if isinstance(value, dict) else None
        if isinstance(arn, str) and SYSTEM_ARN.fullmatch(arn):
            document.problems.warn(where, f"is left out: {arn} was a part of V1's core")
            continue
        fields = Fields(value, where, document.problems)
        function = _function(fields, resources, interpreters, default)
        if function is None:
            continue
        if function.id in functions:
            fields.bad("Id", f"a second function has the Id {function.id}")
        functions.setdefault(function.id, function)
    if any(f.isolation is None for f in functions.values()):
        document.problems.warn(
            "Functions",
            "where IsolationMode is absent, a function is contained as far as this core allows, without network",
        )
    return tuple(functions.values())


def _default_execution(document: Fields) -> Execution:
    """The Execution of a V1 function definition's DefaultConfig."""
    fields = document.fields("DefaultConfig")
    if fields is None:
        return Execution()
    execution = read_execution(fields, Execution())
    fields.done()
    return execution


def _function(
    fields: Fields, resources: Known, interpreters: Mapping[str, str] | None, default: Execution
) -> Function | None:
    id = fields.text("Id", required=True, pattern=ID, what=ID_WORDS)
    arn = fields.text("FunctionArn", required=True)
    folder = _folder(fields, arn) if arn else None
    values: dict[str, Any] = {**default._asdict(), "pinned": True}
    configuration = fields.fields("FunctionConfiguration")
    if configuration is not None:
        values.update(_configuration(configuration, resources, default))
    extra = fields.fields("Marram") or Fields({}, fields.path("Marram"), fields.problems)
    values.update(_extra(extra, interpreters))
    values.update(read_lifecycle(extra, pinned=values["pinned"]))
    values.update(read_confinement(extra, values["isolation"]))
    extra.done()
    fields.done()
    if id is None or arn is None:
        return None
    if arn == ENDPOINT_ARN and values.get("code"):
        fields.bad("Marram.Code", f"{ENDPOINT_ARN} has no code of its own")
    if values.get("code"):
        folder = None
    function = Function(id, arn, folder, endpoint=arn == ENDPOINT_ARN, **values)
    if function.endpoint and len(function.policies) != 1:
        fields.bad(
            "FunctionConfiguration.Environment.ResourceAccessPolicies",
            f"{ENDPOINT_ARN} serves exactly one model resource; {len(function.policies)} are named",
        )
    return function


def _folder(fields: Fields, arn: str) -> str | None:
    if arn == ENDPOINT_ARN:
        return None
    lambda_arn = LAMBDA_ARN.fullmatch(arn)
    if lambda_arn:
        return lambda_arn["name"]
    local = re.fullmatch(f"function:({FOLDER})", arn)
    if local:
        return local[1]
    fields.bad("FunctionArn", f'must be "function:FOLDER", a Lambda ARN or "{ENDPOINT_ARN}", not {shown(arn)}')
    return None


def _configuration(fields: Fields, resources: Known, default: Execution) -> dict[str, object]:
    values: dict[str, object] = {
        "encoding": fields.choice("EncodingType", ("json", "binary"), "json"),
        "timeout_s": fields.number("Timeout", 3.0, 0.001, MAX_TIMEOUT_S),
        "memory_kb": fields.integer("MemorySize", None, 1, 2**40),
        "pinned": fields.flag("Pinned", True),
        "handler": _handler(fields),
        "arguments": _arguments(fields),
    }
    _runtime(fields)
    environment = fields.fields("Environment")
    if environment is not None:
        values.update(_environment(environment, resources, default))
    fields.done()
    return values


def _arguments(fields: Fields) -> tuple[str, ...]:
    text = fields.text("ExecArgs")
    if text is None:
        return ()
    import shlex  # only where it is used

    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        fields.bad("ExecArgs", f"cannot be taken apart into arguments: {error}")
        return ()


def _handler(fields: Fields) -> str | None:
    handler = fields.text("Executable")
    if handler is not None and not re.fullmatch(r"[A-Za-z_][\w.]{0,255}", handler):
        fields.bad("Executable", f"{shown(handler)} is no Python handler, and functions are Python here", UNSUPPORTED)
        return None
    return handler


def _runtime(fields: Fields) -> None:
    """V1's runtimes were python, nodejs, java and executables; the interpreter of a python is the policy's matter."""
    runtime = fields.text("FunctionRuntimeOverride")
    if runtime is None:
        return
    if runtime.lower().startswith("python"):
        fields.problems.warn(fields.path("FunctionRuntimeOverride"), "is not used; Marram.Interpreter names another")
    else:
        fields.bad("FunctionRuntimeOverride", f"{shown(runtime)}: functions are Python here", UNSUPPORTED)


def _environment(fields: Fields, resources: Known, default: Execution) -> dict[str, object]:
    if fields.flag("AccessSysfs", False):
        fields.problems.warn(
            fields.path("AccessSysfs"), "is not used: a function sees /sys, and cannot write there in a container"
        )
    execution = read_execution(fields, default)
    values: dict[str, Any] = {**execution._asdict(), "variables": _variables(fields)}
    found = _policies(fields, resources, execution.isolation)
    values["local"] = tuple(each for each in found if isinstance(resources.get(each.resource), LocalResource))
    secrets = [each for each in found if isinstance(resources.get(each.resource), SecretResource)]
    values["secrets"] = tuple(each.resource for each in secrets)
    values["policies"] = tuple(each for each in found if each not in values["local"] and each not in secrets)
    fields.done()
    return values


def _variables(environment: Fields) -> dict[str, str]:
    raw = environment.take("Variables")
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        environment.bad("Variables", f"must be an object of texts, not {shown(raw)}")
        return {}
    variables: dict[str, str] = {}
    for name, value in raw.items():
        where = f"Variables.{name}"
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) or not isinstance(value, str) or "\0" in value:
            environment.bad(where, f"must be a variable's name and a text, not {shown(value)}")
        elif not value.isascii() and not _is_unicode(value):
            environment.bad(where, "is not valid Unicode")
        elif RESERVED_VARIABLE.fullmatch(name):
            environment.bad(where, "is set by the agent and cannot be given")
        else:
            variables[name] = value
    if variables.get("MXNET_ENGINE_TYPE") == "NativeEngine":  # documented for V1, refused by MXNet 1.9.1 at import
        variables["MXNET_ENGINE_TYPE"] = "NaiveEngine"
        environment.problems.warn(environment.path("Variables.MXNET_ENGINE_TYPE"), "NativeEngine is run as NaiveEngine")
    return variables


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _policies(environment: Fields, resources: Known, isolation: str | None) -> tuple[AccessPolicy, ...]:
    policies: dict[str, AccessPolicy] = {}
    for value, where in environment.items("ResourceAccessPolicies", MAX_POLICIES):
        fields = Fields(value, where, environment.problems)
        policy = _policy(fields, resources, isolation)
        if policy is None:
            continue
        if policy.resource in policies:
            fields.bad("ResourceId", f"{policy.resource} is named twice")
        policies[policy.resource] = policy
    found = [resources[p] for p in policies if p in resources]
    _check_destinations(environment, found)
    return tuple(policies.values())


def _policy(fields: Fields, resources: Known, isolation: str | None) -> AccessPolicy | None:
    id = fields.text("ResourceId", required=True, pattern=ID, what=ID_WORDS)
    permission = fields.choice("Permission", ("ro", "rw"))
    fields.done()
    if id is None:
        return None
    resource = resources.get(id)
    if resource is None:
        fields.bad("ResourceId", f"no (readable) resource has the Id {id}{nearest(id, list(resources))}")
        return AccessPolicy(id, permission)
    if isinstance(resource, SecretResource) and permission == "rw":
        fields.bad("Permission", f"rw: a secret ({id}) can only be read; leave it out, or say ro")
    if not isinstance(resource, Resource):
        return AccessPolicy(id, permission)
    if isolation == NO_CONTAINER:
        if resource.owner is None:
            fields.bad("ResourceId", f"NoContainer needs an OwnerSetting on the resource {id}")
        if permission is not None:
            fields.bad("Permission", "NoContainer takes no Permission: it is the owner's; leave it out")
    if isolation == CONTAINER and permission is None:
        fields.bad("Permission", f"{CONTAINER} needs a Permission: ro or rw")
    if permission == "rw" and resource.owner is not None and resource.owner.permission == "ro":
        fields.bad("Permission", f"rw is more than the owner of {id} has (ro)")
    return AccessPolicy(id, permission)


def _check_destinations(environment: Fields, resources: list[AnyResource]) -> None:
    """V1 refuses equal and nested destinations on one function; here they could not be laid out as links."""
    placed = [each for each in resources if not isinstance(each, SecretResource)]
    paths = sorted((r.destination + "/", r.id) for r in placed if r.destination)
    for (outer, a), (inner, b) in itertools.pairwise(paths):
        if inner.startswith(outer):
            text = f"the DestinationPaths of {a} and {b} are equal or one lies within the other"
            environment.bad("ResourceAccessPolicies", text)


def _extra(fields: Fields, interpreters: Mapping[str, str] | None) -> dict[str, object]:
    values: dict[str, object] = {
        "interpreter": _interpreter(fields, interpreters),
        "runtime": runtime_name(fields),
        "batch": _batch(fields),
        "concurrency": fields.integer("Concurrency", None, 1, MAX_BATCH),
        "capture": read_capture(fields),
        "meta": fields.flag("Meta", True),
        "start_timeout_s": fields.number("StartTimeout", START_TIMEOUT_S, 0.1, MAX_START_TIMEOUT_S),
    }
    values["code"], values["code_digest"] = read_code(fields)
    return values


def _interpreter(fields: Fields, interpreters: Mapping[str, str] | None) -> str | None:
    name = fields.text("Interpreter")
    if name is not None and interpreters is not None and name not in interpreters:
        line = f"interpreters: {{{name}: /path/to/its/bin/python}}"
        text = f'the interpreter {name} is not allowed here; add to policy in topics.yaml: "{line}"'
        fields.bad("Interpreter", text + nearest(name, list(interpreters)), FORBIDDEN)
    return name


def _batch(fields: Fields) -> Batch:
    batch = fields.fields("Batch")
    if batch is None:
        return Batch()
    size = batch.integer("MaxSize", 32, 1, MAX_BATCH)
    delay = batch.integer("MaxDelayMs", 0, 0, 60_000)
    batch.done()
    return Batch(size or 32, delay or 0)
