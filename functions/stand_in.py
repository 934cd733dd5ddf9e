"""A stand-in for a model in tests: any function behind the face of a model, with the same checks as a real one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, TypeAlias

import numpy as np

from functions.runtimes.base import Array, Model, ModelRunError, TensorSpec

Tensors: TypeAlias = Mapping[str, tuple[str, Sequence[int | None]]]


class StandIn(Model):
    """A model whose predictions are what `run` returns.

    Args:
        inputs, outputs: (dtype, shape) by name, in the model's order; None for a free dimension.
        run: gets the checked inputs as arrays, returns all outputs.

    Example::

        model = StandIn(
            {"data": ("float32", [None, 30])},
            {"probabilities": ("float32", [None, 4])},
            lambda inputs: {"probabilities": np.full((len(inputs["data"]), 4), 0.25, np.float32)},
        )
    """

    runtime: ClassVar[str] = "stand-in"

    def __init__(self, inputs: Tensors, outputs: Tensors, run: Callable[[dict[str, Array]], Mapping[str, Any]]) -> None:
        super().__init__(_specs(inputs), _specs(outputs))
        self._function = run

    def _run(self, arrays: dict[str, Array]) -> dict[str, Array]:
        made = {name: np.asarray(value) for name, value in self._function(arrays).items()}
        if made.keys() != {spec.name for spec in self.outputs}:
            raise ModelRunError(f"The stand-in gave {', '.join(made) or 'nothing'}, which are not its outputs.")
        for spec in self.outputs:
            _check(spec, made[spec.name])
        return {spec.name: made[spec.name] for spec in self.outputs}


def _specs(tensors: Tensors) -> list[TensorSpec]:
    return [TensorSpec(name, tuple(shape), np.dtype(dtype).name) for name, (dtype, shape) in tensors.items()]


def _check(spec: TensorSpec, value: Array) -> None:
    sizes = zip(spec.shape, value.shape, strict=False)
    if value.ndim != len(spec.shape) or any(wanted not in (None, size) for wanted, size in sizes):
        raise ModelRunError(f"The stand-in's output {spec.name} has the shape {list(value.shape)}, not {spec.shape}.")
    if value.dtype.name != spec.dtype:
        raise ModelRunError(f"The stand-in's output {spec.name} is {value.dtype.name}, not {spec.dtype}.")
