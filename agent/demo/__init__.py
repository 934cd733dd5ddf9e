"""The demonstration: a whole edge installation on loopback, with real recordings and real models.

`main` is what `marram demo` runs. It needs the extras ``demo``, ``dlr`` and ``onnx``, gcc, and the recordings that
scripts/demo fetches. numpy, boto3 and rich are imported here alone, never by the agent under demonstration.
"""

from __future__ import annotations

from pathlib import Path

from agent.errors import ConfigError

LOAD_S = 6.0


def main(keep: bool = False, seconds: float = LOAD_S, write_to: Path | None = None) -> int:
    """Runs the demonstration, or only writes its models.

    Args:
        keep: stay up afterwards, until Ctrl-C, and say what can be typed in another terminal.
        seconds: load around each step; the whole takes some four times that, and half a minute.
        write_to: a folder; then nothing is run, and what a first try by hand needs is written there.

    Returns:
        0 if everything that it promised held, 1 otherwise.

    Raises:
        ConfigError: something that it needs is not installed.
    """
    try:
        import moto.server  # noqa: F401 - started as a process; asked for here so that its absence is told at once
        import onnx  # noqa: F401

        from agent.demo.play import play, write
    except ImportError as error:
        raise ConfigError(
            "DEMO_INCOMPLETE",
            f"the demonstration needs a package that is not installed: {error.name}.",
            "Run scripts/demo, or: pip install 'marram[demo,onnx]' and scripts/install-runtime dlr VENV",
        ) from error
    if write_to is not None:
        write(write_to)
        return 0
    return play(keep=keep, seconds=seconds)
