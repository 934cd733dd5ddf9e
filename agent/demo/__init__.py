"""The demonstration: a whole edge installation on loopback, with real recordings and real models.

`main` is what `marram demo` runs. It needs the extras ``demo``, ``dlr`` and ``onnx``, gcc, and the recordings that
scripts/demo fetches. numpy, boto3 and rich are imported here alone, never by the agent under demonstration.
"""

from __future__ import annotations

from agent.errors import ConfigError

LOAD_S = 6.0


def main(keep: bool = False, seconds: float = LOAD_S) -> int:
    """Runs the demonstration.

    Args:
        keep: stay up afterwards, until Ctrl-C, and say what can be typed in another terminal.
        seconds: load around each step; the whole takes some four times that, and half a minute.

    Returns:
        0 if everything that it promised held, 1 otherwise.

    Raises:
        ConfigError: something that it needs is not installed.
    """
    try:
        import moto.server  # noqa: F401 - started as a process; asked for here so that its absence is told at once
        import onnx  # noqa: F401

        from agent.demo.play import play
    except ImportError as error:
        raise ConfigError(
            "DEMO_INCOMPLETE",
            f"the demonstration needs a package that is not installed: {error.name}.",
            "Run scripts/demo, or: pip install 'marram[demo,onnx]' and marram runtime install dlr --into VENV",
        ) from error
    return play(keep=keep, seconds=seconds)
