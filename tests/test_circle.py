"""The whole circle in short: one agent, a stream while the cloud is away, labels by id, a next model that is better."""

from __future__ import annotations

import math

import numpy as np
import pytest

from agent.demo import digits
from agent.demo.circle import Factory, Turn, label
from agent.demo.circle_report import interval, summary


def test_a_turn_of_the_circle_makes_the_model_better() -> None:
    split = digits.split(digits.read(digits.find_wheel()), seed=0, labelled=50, holdout=200)
    stream = split.stream.take(np.arange(400))
    factory = Factory(60)
    try:
        factory.start()
        turn = factory.turn(digits.Split(split.seed, stream, split.holdout), 0, "entropy")
    finally:
        factory.stop()
    assert turn.samples == 60
    assert 0.5 < turn.before < turn.after, turn


def test_splits_share_nothing_and_labels_are_joined_by_id() -> None:
    data = digits.read(digits.find_wheel())
    assert len(data) == 1797
    split = digits.split(data, seed=3, labelled=50, holdout=500)
    assert [len(each) for each in (split.seed, split.stream, split.holdout)] == [50, 1247, 500]
    together = np.concatenate([split.seed.pixels, split.stream.pixels, split.holdout.pixels])
    assert np.array_equal(np.sort(together.sum(1)), np.sort(data.pixels.sum(1)))
    sample = {"input": {"id": "3-entropy:17", "inputs": [{"data": split.stream.pixels[17].tolist()}]}}
    found = label([sample], split.stream)
    assert np.array_equal(found.pixels, split.stream.pixels[17:18])
    assert found.labels.tolist() == [split.stream.labels[17]]


def test_the_interval_is_students() -> None:
    mean, half = interval([0.1, 0.2, 0.3])
    assert mean == pytest.approx(0.2)
    assert half == pytest.approx(4.303 * 0.1 / math.sqrt(3))
    found = [
        Turn(seed, policy, 0.5, after, 9) for seed in (0, 1) for policy, after in (("entropy", 0.75), ("random", 0.5))
    ]
    assert "| entropy less random | 25.0 % | 25.0 to 25.0 |" in summary(found)
