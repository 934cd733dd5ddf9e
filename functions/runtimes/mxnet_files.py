"""What an MXNet package holds: NAME-symbol.json and NAME-NNNN.params, read and seen to belong together.

The two files do not say what shape the inputs have; which names are inputs is what is left when weights and labels are
taken out of the symbol's arguments.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from functions.runtimes.base import ModelLoadError
from functions.runtimes.options import Shapes, first_line

DTYPES: Final = ("float32", "float64", "float16", "int32", "int64", "int8", "uint8")
_PARAMS: Final = re.compile(r"(?P<prefix>.+)-(?P<epoch>\d{4})\.params")


class Files(NamedTuple):
    """A network's two files."""

    symbol: Path
    params: Path


class Network(NamedTuple):
    """What was read, and where it is to run.

    Attributes:
        numpy: whether it was exported by a block of ``mxnet.np``, where no size is 0 for "unknown".
    """

    symbol: Any
    arguments: Mapping[str, Any]
    auxiliary: Mapping[str, Any]
    context: Any
    dtypes: Mapping[str, str]
    numpy: bool


def find_files(directory: Path, settings: Mapping[str, Any]) -> Files:
    """The one pair of files that the options `prefix` and `epoch` (-1: any) leave.

    Raises:
        ModelLoadError: none, or several.
    """
    found = []
    for path in sorted(directory.glob("*.params")):
        match = _PARAMS.fullmatch(path.name)
        if match is None or settings["prefix"] not in ("", match["prefix"]):
            continue
        symbol = directory / f"{match['prefix']}-symbol.json"
        if symbol.is_file() and settings["epoch"] in (-1, int(match["epoch"])):
            found.append(Files(symbol, path))
    if len(found) == 1:
        return found[0]
    names = ", ".join(each.params.name for each in found) or "none"
    raise ModelLoadError(
        f"Exactly one pair NAME-symbol.json and NAME-NNNN.params is expected in the model package, found: {names}. The"
        " options `prefix` and `epoch` pick one."
    )


def attributes_of(symbol: Path) -> dict[str, Any]:
    """What the file says about itself: ``{name: (type, value)}``, whole numbers alone.

    Raises:
        ModelLoadError: it is no symbol.
    """
    try:
        found = json.loads(symbol.read_bytes()).get("attrs", {})
        return {name: (kind, int(value)) for name, (kind, value) in found.items() if kind == "int"}
    except (ValueError, AttributeError, TypeError) as error:
        raise ModelLoadError(f"{symbol.name} is no symbol of MXNet: {error}.") from error


def refuse_newer(name: str, attributes: Mapping[str, Any], mx: Any) -> None:
    """MXNet reads what an older one wrote; of a newer one's it says something about an operator, at best.

    Raises:
        ModelLoadError: RUNTIME_VERSION_MISMATCH.
    """
    number = attributes.get("mxnet_version", (None, 0))[1]
    written = (number // 10000, number // 100 % 100)
    installed = tuple(int(part) for part in re.findall(r"\d+", mx.__version__)[:2])
    if written > installed:
        raise ModelLoadError(
            f"{name} was written by MXNet {written[0]}.{written[1]}.{number % 100}, and installed is MXNet"
            f" {mx.__version__}. Install that version on the core, or export the model with the installed one.",
            "RUNTIME_VERSION_MISMATCH",
        )


def network_of(symbol: Any, saved: Any, files: Files, context: Any, dtypes: Mapping[str, Any], numpy: bool) -> Network:
    """The network with its weights sorted into arguments and auxiliary states, as the symbol has them.

    Raises:
        ModelLoadError: weights are missing, or the option `dtypes` is wrong.
    """
    if not isinstance(saved, dict):
        raise ModelLoadError(f"{files.params.name} holds arrays without names: they are not this network's weights.")
    for name, dtype in dtypes.items():
        if dtype not in DTYPES:
            known = ", ".join(DTYPES)
            raise ModelLoadError(f"MXNet's option `dtypes` has {dtype!r} for {name}; one of {known} is expected.")
    weights = {name.partition(":")[2] if name.startswith(("arg:", "aux:")) else name: a for name, a in saved.items()}
    arguments, auxiliary = set(symbol.list_arguments()), symbol.list_auxiliary_states()
    missing = [name for name in auxiliary if name not in weights]
    if missing:
        raise ModelLoadError(f"{files.params.name} lacks {', '.join(missing[:5])}.")
    return Network(
        symbol,
        {name: array.as_in_context(context) for name, array in weights.items() if name in arguments},
        {name: weights[name].as_in_context(context) for name in auxiliary},
        context,
        dtypes,
        numpy,
    )


def inputs_of(network: Network) -> list[str]:
    """The arguments that have no weights, but for the labels, which only training reads."""
    names = network.symbol.list_arguments()
    return [name for name in names if name not in network.arguments and not name.endswith("label")]


def check_inputs(network: Network, shapes: Shapes) -> None:
    """That there is a shape for each input.

    Raises:
        ModelLoadError: tells what to write.
    """
    inputs = inputs_of(network)
    if set(shapes) == set(inputs):
        return
    example = ", ".join(f"{name}: [1, 3, 224, 224]" for name in inputs)
    raise ModelLoadError(
        f"MXNet's files do not say what shape the inputs have, so the option `shapes` must, for {', '.join(inputs)};"
        f" it has {', '.join(shapes) or 'none'}. For example: Options: {{shapes: {{{example}}}}}."
    )


def reason_of(error: Exception) -> str:
    """MXNet's own words: they stand last, after a stack of its sources."""
    lines = [line for line in str(error).splitlines() if "MXNetError:" in line]
    return lines[-1].partition("MXNetError:")[2].strip()[:500] if lines else first_line(error)
