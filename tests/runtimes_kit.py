"""One network trained on the watches' recordings as a model of each runtime, and what each library makes of it by hand.

LiteRT's files are written here; TensorFlow's and MXNet's by these libraries themselves, in their environments below
``.venvs``, which scripts/test makes.
"""

from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent.demo.data import find_wheel, read
from agent.demo.train import Network, all_features, train

ROOT = Path(__file__).parent.parent
ENVIRONMENTS = ROOT / ".venvs"
FEATURES, CLASSES = 30, 4


@cache
def recordings() -> tuple[Any, Any]:
    """The features of the real recordings of the test split, and their labels."""
    _, test = read(find_wheel())
    return all_features(test.windows), test.labels


@cache
def trained(seed: int = 0) -> Network:
    """A network trained on the training split; it tells nearly all of the test split right."""
    training, _ = read(find_wheel())
    return train(all_features(training.windows), training.labels, hidden=16, seed=seed)


def python_of(name: str) -> str:
    """The Python of an environment that scripts/test has made."""
    python, unfit = ENVIRONMENTS / name / "bin" / "python", ENVIRONMENTS / f"{name}.unfit"
    if unfit.exists():
        pytest.skip(unfit.read_text().strip())
    assert python.exists(), f"there is no environment {name}: run scripts/test once, which makes it"
    return str(python)


def run_in(name: str, script: str, *arguments: object) -> str:
    """What the script below this folder prints, run by the environment's Python."""
    command = [python_of(name), str(Path(__file__).parent / script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def save_network(path: Path, network: Network, **more: Any) -> Path:
    """The network's layers and the test split's features as an .npz, for a script of another environment."""
    (w1, b1), (w2, b2) = network.layers
    np.savez(path, w1=w1, b1=b1, w2=w2, b2=b2, x=recordings()[0], **more)
    return path
