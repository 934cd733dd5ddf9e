"""What each runtime's environment is made of. Pure.

Versions are pinned where others do not work: MXNet 1.9.1 cannot be imported with numpy 1.24 or later, so it needs a
Python that numpy 1.23.5 has wheels for, 3.11 at most; dlr 1.10.0 is the last, and carries no libdlr.so.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from agent.values import dataclass

ALWAYS: Final = ("msgpack",)  # what a worker needs beside numpy
OLDEST: Final = (3, 10)


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to make one runtime's environment.

    Attributes:
        packages: what pip is to install for the runtime itself.
        beside: what must be there with it.
        bare: whether the packages' own dependencies are left out.
        newest: the newest Python that it works with; None: any.
        names: the packages that can bring the runtime, this machine's or a GPU's, for listings.
        installed_mb: about how much disk it takes.
    """

    packages: tuple[str, ...]
    names: tuple[str, ...]
    installed_mb: int
    beside: tuple[str, ...] = ("numpy",)
    bare: bool = False
    newest: tuple[int, int] | None = None


RECIPES: Final[Mapping[str, Recipe]] = {
    # dlr wants `requests` and `distro` only to call home, which workers prevent.
    "dlr": Recipe(("dlr==1.10.0",), ("dlr",), 80, bare=True),
    "onnx": Recipe(
        ("onnxruntime",),
        ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-rocm", "onnxruntime-qnn"),
        155,
    ),
    "litert": Recipe(("ai-edge-litert",), ("ai-edge-litert", "tflite-runtime"), 140),
    "tensorflow": Recipe(
        ("tensorflow-cpu",), ("tensorflow", "tensorflow-cpu", "tensorflow-cpu-aws", "tensorflow-intel"), 1500
    ),
    "mxnet": Recipe(
        ("mxnet==1.9.1",),
        ("mxnet", "mxnet-mkl", "mxnet-cu101", "mxnet-cu102", "mxnet-cu110", "mxnet-cu112"),
        270,
        beside=("numpy==1.23.5",),
        newest=(3, 11),
    ),
}


def recipe_of(runtime: str, machine: str, packages: tuple[str, ...] = ()) -> Recipe:
    """The recipe of a runtime on a processor.

    Args:
        machine: as `platform.machine` names it.
        packages: what to install in the place of the runtime's own, such as one for a GPU.
    """
    recipe = RECIPES[runtime]
    own = packages or recipe.packages
    if own == ("tensorflow-cpu",) and machine != "x86_64":
        own = ("tensorflow",)  # there the plain package is the processor's
    newest = recipe.newest if not packages else None
    return Recipe(own, recipe.names, recipe.installed_mb, recipe.beside, recipe.bare, newest)


def fits(recipe: Recipe, python: tuple[int, int]) -> bool:
    """Whether an environment of this Python can be made."""
    return python >= OLDEST and (recipe.newest is None or python <= recipe.newest)


def range_of(recipe: Recipe) -> str:
    """Which Pythons fit, in words."""
    oldest = ".".join(map(str, OLDEST))
    return f"{oldest} to {'.'.join(map(str, recipe.newest))}" if recipe.newest else f"{oldest} or later"
