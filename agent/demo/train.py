"""Trains the demonstration's models with numpy alone: small dense networks on the function's features.

It stands in for a factory's training. The features' scale is folded into the first layer, so that a model takes
features as the function computes them.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from agent.values import dataclass
from functions.activity import ACTIVITIES, features

Floats: TypeAlias = NDArray[np.float32]
Doubles: TypeAlias = NDArray[np.float64]

STEPS = 400
_RATE, _DECAY = 0.02, 1e-3
_BETA = 0.9, 0.999  # Adam


@dataclass(frozen=True, slots=True)
class Network:
    """Dense layers with ReLU between them and a softmax last: (weights [outputs, inputs], bias [outputs]) each."""

    layers: tuple[tuple[Floats, Floats], ...]

    def scores(self, data: Floats) -> Floats:
        """The model run by hand: float32[rows, 4] for float32[rows, 30]."""
        for weights, bias in self.layers[:-1]:
            data = np.maximum(data @ weights.T + bias, 0)
        weights, bias = self.layers[-1]
        return _softmax(data @ weights.T + bias).astype(np.float32)


def all_features(windows: Doubles) -> Floats:
    """float32[windows, 30]: the function's own features of each window."""
    return np.stack([features(window) for window in windows])


def train(
    data: Floats, labels: NDArray[np.int64], *, hidden: int, seed: int, classes: int = len(ACTIVITIES)
) -> Network:
    """A network with one hidden layer, fitted to all of `data`; the same for the same arguments."""
    random = np.random.default_rng(seed)
    mean, scale = data.mean(0).astype(np.float64), data.std(0).astype(np.float64) + 1e-6
    x, wanted = (data - mean) / scale, np.eye(classes)[labels]
    sizes = (x.shape[1], hidden, classes)
    parameters: list[Doubles] = []
    for inputs, outputs in pairwise(sizes):
        parameters += [random.normal(0, np.sqrt(2 / inputs), (outputs, inputs)), np.zeros(outputs)]
    _adam(parameters, x, wanted)
    w1, b1, w2, b2 = parameters
    w1 = w1 / scale
    return Network(((w1.astype("f4"), (b1 - w1 @ mean).astype("f4")), (w2.astype("f4"), b2.astype("f4"))))


def _adam(parameters: list[Doubles], x: Doubles, wanted: Doubles) -> None:
    first, second = ([np.zeros_like(p) for p in parameters] for _ in range(2))
    for step in range(1, STEPS + 1):
        for p, m, v, gradient in zip(parameters, first, second, _gradients(parameters, x, wanted), strict=True):
            m += (1 - _BETA[0]) * (gradient - m)
            v += (1 - _BETA[1]) * (gradient**2 - v)
            p -= _RATE * (m / (1 - _BETA[0] ** step)) / (np.sqrt(v / (1 - _BETA[1] ** step)) + 1e-8)


def _gradients(parameters: list[Doubles], x: Doubles, wanted: Doubles) -> tuple[Doubles, ...]:
    """Of the mean cross-entropy with weight decay."""
    w1, b1, w2, b2 = parameters
    hidden = np.maximum(x @ w1.T + b1, 0)
    error = (_softmax(hidden @ w2.T + b2) - wanted) / len(x)
    behind = (error @ w2) * (hidden > 0)
    return behind.T @ x + _DECAY * w1, behind.sum(0), error.T @ hidden + _DECAY * w2, error.sum(0)


def _softmax(x: NDArray[Any]) -> NDArray[Any]:
    raised: NDArray[Any] = np.exp(x - x.max(axis=1, keepdims=True))
    raised /= raised.sum(axis=1, keepdims=True)
    return raised
