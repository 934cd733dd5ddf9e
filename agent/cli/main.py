"""The `marram` command: finds what to run and says what went wrong with it.

Exit codes: 0 success, 1 failed, 2 used wrongly, 78 settings or files that cannot be used (EX_CONFIG), 130 interrupted.
Whatever goes wrong, a user reads one error with a code and what to do, and no traceback: that is for the log.
"""

from __future__ import annotations

import sys

from agent.errors import AgentError, ConfigError

TYPE_CHECKING = False  # that of typing, without typing
if TYPE_CHECKING:
    from collections.abc import Sequence

EX_CONFIG = 78


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _run(given)
    except AgentError as error:
        print(f"marram: {error}", file=sys.stderr)
        return EX_CONFIG if isinstance(error, ConfigError) else 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 1
    except Exception as error:
        return _say_internal(error)


def _run(given: list[str]) -> int:
    # The agent runs for months: it is not to hold what reads the command line, 1.5 MB and 20 ms of its start.
    if given[:1] == ["run"]:
        from agent.cli.run import plain, run

        if (options := plain(given[1:])) is not None:
            return run(*options)
    from agent.cli.parser import parser

    parsed = parser().parse_args(given)
    code: int = parsed.run(parsed)
    return code


def _say_internal(error: Exception) -> int:
    """Tells a mistake of ours with the line it was made on, so that a report of it is worth something."""
    import logging  # by now most commands have it
    import os
    import traceback

    if logging.getLogger().handlers:  # there is a log to say all of it to
        logging.getLogger("agent").exception("a programming error")
    *_, last = traceback.extract_tb(error.__traceback__)
    text = f"{type(error).__name__}: {error} ({os.path.basename(last.filename)}:{last.lineno})."
    told = AgentError("INTERNAL", text, "Please report this, with the command and Marram's version.")
    print(f"marram: {told}", file=sys.stderr)
    return 1
