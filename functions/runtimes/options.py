"""Reading a model's options: unknown ones and wrong types are errors, never ignored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from functions.runtimes.base import ModelLoadError

Shapes: TypeAlias = Mapping[str, tuple[int | None, ...]]

_WORDS = {bool: "true or false", int: "a whole number", str: "a text", dict: "an object", list: "a list"}


def taken(options: Mapping[str, Any], runtime: str, **defaults: Any) -> dict[str, Any]:
    """`defaults` overridden by `options`, which must be of the same names and types.

    Raises:
        ModelLoadError: names the option and what is expected.
    """
    for name, value in options.items():
        if name not in defaults:
            known = ", ".join(defaults) or "none"
            raise ModelLoadError(f"{runtime} knows no option `{name}`; known: {known}.")
        kind = type(defaults[name])
        if type(value) is not kind:
            raise ModelLoadError(f"{runtime}'s option `{name}` is {value!r}; {_WORDS[kind]} is expected.")
    return {**defaults, **options}


def choice(settings: Mapping[str, Any], runtime: str, name: str, known: Mapping[str, Any]) -> Any:
    """What `known` has for the option `name`.

    Raises:
        ModelLoadError: it has nothing; the message lists what it has.
    """
    value = settings[name]
    if value not in known:
        raise ModelLoadError(f"{runtime}'s option `{name}` is {value!r}; one of {', '.join(known)} is expected.")
    return known[value]


def device_of(settings: Mapping[str, Any], runtime: str, kinds: Sequence[str]) -> tuple[str, int]:
    """The option `device`, ``gpu`` or ``gpu:1``, as a kind and a number.

    Raises:
        ModelLoadError: it is not like that, or of none of `kinds`.
    """
    kind, _, number = settings["device"].partition(":")
    if kind not in kinds or not (number or "0").isdecimal():
        text = (
            f"{runtime}'s option `device` is {settings['device']!r}; {', '.join(kinds)} or such as gpu:1 is expected."
        )
        raise ModelLoadError(text)
    return kind, int(number or 0)


def shapes_of(settings: Mapping[str, Any], runtime: str) -> Shapes:
    """The option `shapes`: ``{input: [sizes]}``, null for a free one.

    Raises:
        ModelLoadError: it is not like that.
    """
    found = settings["shapes"]
    for name, shape in found.items():
        if not isinstance(shape, list) or not all(size is None or (type(size) is int and size > 0) for size in shape):
            text = "a list of sizes is expected, null for a free one"
            raise ModelLoadError(f"{runtime}'s option `shapes` has {shape!r} for {name}; {text}.")
    return {name: tuple(shape) for name, shape in found.items()}


def one_file(directory: Path, suffix: str, name: str) -> Path:
    """The file `name` in `directory`, or without a name the only one there with the suffix.

    Raises:
        ModelLoadError: there is none, or more than one.
    """
    files = [directory / name] if name else sorted(directory.glob(f"*{suffix}"))
    if len(files) == 1 and files[0].is_file():
        return files[0]
    found = ", ".join(file.name for file in files) or "none"
    raise ModelLoadError(
        f"Exactly one {suffix} file is expected in the model package, found: {found}. The option `file` picks one."
    )


def first_line(error: BaseException) -> str:
    """What a library's exception says, without the stacks that follow."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:500]
