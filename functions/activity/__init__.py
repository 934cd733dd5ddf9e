"""What the wearer of a smart watch is doing, from ten seconds of its accelerometer and gyroscope.

Event: ``{"window": [[ax, ay, az, gx, gy, gz], ..]}``: samples in the order of time, six values each, any number from 2
on (the demonstration's are 100, ten a second). Answer: ``{"activity": "Running", "scores": {"Running": 0.98, ..}}``.

The model ``activity-model`` takes ``data``, float32[1, 30] as `features` computes them, and gives ``probabilities``,
float32[1, 4] in the order of `ACTIVITIES`. It may be of any runtime: a Neo directory and an ONNX file serve alike.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from functions.sdk import Context

ACTIVITIES = ("Standing", "Running", "Walking", "Badminton")
CHANNELS = 6


def handler(event: dict[str, Any], context: Context) -> dict[str, Any]:
    """The likeliest activity in ``event["window"]``, and the score of each."""
    data = features(event["window"])[np.newaxis]
    scores = context.model("activity-model").predict({"data": data})["probabilities"][0]
    named = {name: round(float(score), 6) for name, score in zip(ACTIVITIES, scores, strict=True)}
    return {"activity": max(named, key=named.__getitem__), "scores": named}


def features(window: Any) -> NDArray[np.float32]:
    """Five figures a channel: mean, deviation, lowest, highest and mean step from sample to sample.

    Args:
        window: [samples, 6], in the order of time.

    Returns:
        float32[30], the five figures of the first channel first.

    Raises:
        ValueError: `window` has another shape, or holds what is no number.
    """
    values = np.asarray(window, dtype=np.float64)
    if values.ndim != 2 or values.shape[1] != CHANNELS or len(values) < 2:
        shape = list(values.shape)
        raise ValueError(f"window has the shape {shape}: at least two samples of {CHANNELS} values are expected")
    steps = np.abs(np.diff(values, axis=0)).mean(axis=0)
    figures = np.stack([values.mean(0), values.std(0), values.min(0), values.max(0), steps], axis=1)
    return figures.astype(np.float32).ravel()
