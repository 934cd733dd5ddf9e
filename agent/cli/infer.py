"""The command `marram infer`: one request from the command line, and its answer as text."""

from __future__ import annotations

import argparse
import base64
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.cli import place as cli_place
from agent.errors import ConfigError

if TYPE_CHECKING:
    from agent.cli.commands import InferAnswer

Add = Callable[[str, Callable[[argparse.Namespace], int], str, str], argparse.ArgumentParser]


def register(add: Add, seconds: Callable[[str], float]) -> None:
    """Adds `infer`.

    Args:
        add: makes a command of a name, what it runs, what it is for and an example.
        seconds: reads a number of seconds.
    """
    about = "Send one request to a function and print its answer."
    infer = add("infer", _infer, about, "marram infer activity --data '{\"window\": []}'")
    infer.add_argument("function", metavar="FUNCTION", help="the function's Id")
    infer.add_argument("file", nargs="?", metavar="FILE", help="the payload (default: standard input)")
    infer.add_argument("--data", metavar="TEXT", help="the payload itself")
    infer.add_argument("--topic", metavar="TOPIC", help="the event's topic; over a broker, where to publish")
    kinds = infer.add_mutually_exclusive_group()
    kinds.add_argument(
        "--content-type", metavar="TYPE", help="application/json, application/msgpack or application/octet-stream"
    )
    kinds.add_argument(
        "--msgpack", action="store_true",
        help='send the payload, which is JSON, as msgpack, {"base64": ".."} as bytes; the answer is printed alike',
    )  # fmt: skip
    infer.add_argument("--timeout", type=seconds, default=30.0, metavar="SECONDS")
    cli_place.add_options(infer, "over this broker, mqtt://host:1883, in place of the local socket")


def _infer(options: argparse.Namespace) -> int:
    from agent.cli.commands import infer
    from agent.messages import MSGPACK

    payload, content_type = _payload(options), options.content_type
    if options.msgpack:
        payload, content_type = _packed(payload), MSGPACK
    answer = infer(
        cli_place.place_of(options),
        options.function,
        payload,
        topic=options.topic,
        content_type=content_type,
        timeout_s=options.timeout,
    )
    sys.stdout.buffer.write(_shown(answer, unpack=options.msgpack))
    sys.stdout.buffer.flush()
    if answer.error is not None:
        print(f"marram: {answer.error}", file=sys.stderr)
    return 0 if answer.error is None else 1


def _payload(options: argparse.Namespace) -> bytes:
    from agent.cli.commands import unreadable

    if options.data is not None:
        return os.fsencode(options.data)
    if options.file is None or str(options.file) == "-":
        return sys.stdin.buffer.read()
    try:
        return Path(options.file).read_bytes()
    except OSError as error:
        raise unreadable(Path(options.file), error) from error


def _packed(payload: bytes) -> bytes:
    """JSON as msgpack.

    Raises:
        ConfigError: PAYLOAD_NOT_JSON.
    """
    import msgpack

    try:
        packed: bytes = msgpack.packb(json.loads(payload, object_hook=_bytes))
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        text = f"With --msgpack the payload is JSON, and it is not: {error}."
        raise ConfigError(
            "PAYLOAD_NOT_JSON", text, "Write JSON, or send msgpack as it is with --content-type."
        ) from error
    return packed


def _bytes(value: dict[str, Any]) -> Any:
    return base64.b64decode(value["base64"], validate=True) if value.keys() == {"base64"} else value


def _shown(answer: InferAnswer, *, unpack: bool) -> bytes:
    """The answer's bytes; JSON ends its line."""
    from agent.messages import JSON, MSGPACK

    if unpack and answer.content_type == MSGPACK:
        import msgpack

        return json.dumps(msgpack.unpackb(answer.payload), default=_text).encode() + b"\n"
    return answer.payload + b"\n" * (answer.content_type == JSON)


def _text(value: Any) -> Any:
    return {"base64": base64.b64encode(value).decode()} if isinstance(value, bytes) else str(value)
