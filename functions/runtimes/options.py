"""Reading a model's options: unknown ones and wrong types are errors, never ignored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from functions.runtimes.base import ModelLoadError


def taken(options: Mapping[str, Any], runtime: str, **defaults: Any) -> dict[str, Any]:
    """`defaults` overridden by `options`, which must be of the same names and types.

    Raises:
        ModelLoadError: names the option and what is expected.
    """
    for name, value in options.items():
        if name not in defaults:
            known = ", ".join(defaults) or "none"
            raise ModelLoadError(f"{runtime} knows no option `{name}`; known: {known}.")
        if type(value) is not type(defaults[name]):
            raise ModelLoadError(
                f"{runtime}'s option `{name}` is {value!r}; a {type(defaults[name]).__name__} is expected."
            )
    return {**defaults, **options}
