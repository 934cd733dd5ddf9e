"""The embedded broker's commands: `marram broker`, and `marram broker users` for its password file."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from agent.errors import ConfigError

Add = Callable[[str, Callable[[argparse.Namespace], int], str, str], argparse.ArgumentParser]


def register(add: Add, log: Callable[[str], None]) -> argparse.ArgumentParser:
    """Adds `broker` and returns it.

    Args:
        add: makes a command of a name, what it runs, what it is for and an example.
        log: sets up the log at a level.
    """

    def run(options: argparse.Namespace) -> int:
        log(options.log_level)
        return _run(options)

    about = "Run the embedded broker alone, for testing; or look after its users."
    broker = add("broker", run, about, "marram broker --listen 127.0.0.1:1883")
    broker.add_argument("--listen", metavar="HOST:PORT", help="where to listen (default: as the settings say)")
    actions = broker.add_subparsers(title="actions", metavar="ACTION")
    text = "Add, remove and list who may log in to the embedded broker."
    users = actions.add_parser("users", help="its password file", description=text)
    doing = users.add_subparsers(title="actions", metavar="ACTION", required=True)
    for name, does, text, example in (
        ("add", _add, "Add a user, or give one another password: asked for, or the first line of standard input.",
         "marram broker users add press-hmi --file users"),
        ("rm", _remove, "Remove a user; it is thrown out within ten seconds.", "marram broker users rm press-hmi"),
        ("ls", _list, "List the users.", "marram broker users ls"),
    ):  # fmt: skip
        raw = argparse.RawDescriptionHelpFormatter
        each = doing.add_parser(name, help=text, description=text, epilog=f"example:\n  {example}", formatter_class=raw)
        each.set_defaults(run=does)
        if name != "ls":
            each.add_argument("name", metavar="NAME")
        each.add_argument("--file", type=Path, metavar="FILE", help="the password file (default: as the settings say)")
        each.add_argument("--config", type=Path, default=argparse.SUPPRESS, metavar="FILE", help="the settings")
    return broker


def _run(options: argparse.Namespace) -> int:
    from agent.mqtt import broker
    from agent.mqtt.guard import guard_of
    from agent.settings.reader import load

    if options.listen:
        _refuse_openness(options.listen)
        print(f"broker on {options.listen}; end it with Ctrl-C", flush=True)
        broker.main(options.listen)
        return 0
    local = load(options.config, strict=False).local
    print(f"broker on {local.listen}; end it with Ctrl-C", flush=True)
    broker.main(local.listen, guard_of(local))
    return 0


def _refuse_openness(listen: str) -> None:
    from agent.mqtt.connecting import host_and_port
    from agent.settings.embedded import is_loopback

    if not is_loopback(host_and_port(listen)[0]):
        text = f"On {listen} the broker would let everybody in, without a password and without TLS."
        remedy = "Set listen, users, cert and key of links.local in topics.yaml, and run it without --listen."
        raise ConfigError("BROKER_OPEN", text, remedy)


def _add(options: argparse.Namespace) -> int:
    from agent.trust import broker_users

    file = _file(options)
    new = broker_users.put(file, options.name, _password(options.name))
    print(f"{file}: {options.name} is {'added' if new else 'given another password'}")
    return 0


def _remove(options: argparse.Namespace) -> int:
    from agent.trust import broker_users

    file = _file(options)
    broker_users.remove(file, options.name)
    print(f"{file}: {options.name} is removed")
    return 0


def _list(options: argparse.Namespace) -> int:
    from agent.trust import broker_users

    for name in broker_users.names(_file(options)):
        print(name)
    return 0


def _file(options: argparse.Namespace) -> Path:
    from agent.settings.reader import load

    if options.file is not None:
        return Path(options.file)
    users = load(options.config, strict=False).local.users
    if users is None:
        text = f"{options.config} names no password file for the embedded broker."
        raise ConfigError("BROKER_USERS", text, "Set `links.local.users` there, or give --file FILE.")
    return users


def _password(name: str) -> str:
    if not sys.stdin.isatty():
        return sys.stdin.readline().rstrip("\n")
    import getpass

    first = getpass.getpass(f"password of {name}: ")
    if getpass.getpass("once more: ") != first:
        raise ConfigError("BROKER_PASSWORD", "The two passwords differ.", "Type the same one twice.")
    return first
