"""Reads what a resource says of its model's runtime: which, in what version, with what options. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from agent.deployment.fields import Fields, nearest, shown

RUNTIMES: Final = ("dlr", "onnx", "litert", "tensorflow", "mxnet")
OWN: Final = "runtime"  # the key of the runtime's own version among those that are required
MAX_DEPTH: Final = 8
MAX_REQUIRED: Final = 20
SCALARS: Final = (str, int, float, bool, type(None))
NAME: Final = r"[A-Za-z0-9][A-Za-z0-9._-]{0,100}"
_CLAUSE: Final = r" *(==|!=|>=|<=|>|<)? *[0-9]+(\.[0-9]+)*(\.\*)? *"
VERSIONS: Final = rf"{_CLAUSE}(,{_CLAUSE})*"
VERSIONS_WORDS: Final = 'a version such as "1.9" (all that begin with it), "==1.9.1" or ">=2.15,<3"'


class ModelRuntime(NamedTuple):
    """What a model is run with.

    Attributes:
        name: the runtime's; None: found out from the files.
        options: settings of the runtime.
        requires: versions that must be installed, by the name of a package, or `OWN`.
    """

    name: str | None
    options: Mapping[str, object]
    requires: Mapping[str, str]


def read_runtime(fields: Fields) -> ModelRuntime:
    """The keys Runtime, RuntimeVersion, Requires and Options of a resource's ``Marram``."""
    name = runtime_name(fields)
    requires = read_requires(fields)
    version = fields.text("RuntimeVersion", pattern=VERSIONS, what=VERSIONS_WORDS)
    if version is not None:
        requires = {OWN: version, **requires}
    return ModelRuntime(name, _options(fields), requires)


def runtime_name(fields: Fields) -> str | None:
    """The key Runtime."""
    name = fields.text("Runtime")
    if name is not None and name not in RUNTIMES:
        fields.bad("Runtime", f"must be one of {', '.join(RUNTIMES)}, not {shown(name)}{nearest(name, RUNTIMES)}")
        return None
    return name


def read_requires(fields: Fields) -> dict[str, str]:
    """The key Requires."""
    if not fields.has("Requires"):
        fields.take("Requires")
        return {}
    raw = fields.take("Requires")
    if not isinstance(raw, dict) or len(raw) > MAX_REQUIRED:
        fields.bad("Requires", f"must be an object of at most {MAX_REQUIRED} versions by package, not {shown(raw)}")
        return {}
    required = Fields(raw, fields.path("Requires"), fields.problems)
    found = {name: required.text(name, required=True, pattern=VERSIONS, what=VERSIONS_WORDS) for name in raw}
    return {name: version for name, version in found.items() if version is not None}


def _options(fields: Fields) -> dict[str, object]:
    options = fields.take("Options")
    if options is None:
        return {}
    if not isinstance(options, dict) or not _is_plain(options, MAX_DEPTH):
        fields.bad("Options", "must be an object of texts, numbers and flags, and of lists and objects of these")
        return {}
    return {str(key): value for key, value in options.items()}


def _is_plain(value: object, depth: int) -> bool:
    if isinstance(value, dict):
        return depth > 0 and all(isinstance(key, str) and _is_plain(each, depth - 1) for key, each in value.items())
    if isinstance(value, list):
        return depth > 0 and all(_is_plain(each, depth - 1) for each in value)
    return isinstance(value, SCALARS)
