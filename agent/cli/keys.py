"""The commands around signed documents: `marram keys new` and `show`, `marram sign`, `marram deploy --sign`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

Add = Callable[[str, Callable[[argparse.Namespace], int], str, str], argparse.ArgumentParser]


def register(add: Add) -> None:
    """Adds `keys` and `sign`.

    Args:
        add: makes a command of a name, what it runs, what it is for and an example.
    """
    keys = add("keys", _show, "Make and show the keys that documents are signed with.", "marram keys new cloud")
    actions = keys.add_subparsers(title="actions", metavar="ACTION", required=True)
    raw = argparse.RawDescriptionHelpFormatter

    text = "Make a pair: NAME.key, which signs and stays secret, and NAME.pub, which cores are given."
    example = "example:\n  marram keys new cloud --directory ~/keys"
    new = actions.add_parser("new", help="make a pair", description=text, epilog=example, formatter_class=raw)
    new.set_defaults(run=_new)
    new.add_argument("name", metavar="NAME")
    new.add_argument("--directory", type=Path, default=Path(), metavar="DIR", help="where (default: this folder)")

    text, example = "Print the id of a key.", "example:\n  marram keys show cloud.pub"
    show = actions.add_parser("show", help="print a key's id", description=text, epilog=example, formatter_class=raw)
    show.set_defaults(run=_show)
    show.add_argument("file", type=Path, metavar="FILE", help="NAME.pub or NAME.key")
    for each in (new, show):
        each.add_argument("--json", action="store_true", help="one line of JSON")

    example = "marram sign deployment.yaml --key cloud.key --output deployment.json"
    sign = add("sign", _sign, "Sign a deployment document, so that it can be sent by any way.", example)
    sign.add_argument("file", type=Path, metavar="FILE", help="the document, or a signed one to sign once more")
    sign.add_argument("--key", type=Path, required=True, metavar="FILE", help="the private key, NAME.key")
    help = "the signed document: msgpack where it ends in .msgpack, else JSON"
    sign.add_argument("--output", type=Path, required=True, metavar="FILE", help=help)


def add_sign_option(deploy: argparse.ArgumentParser) -> None:
    """Adds `--sign` to `deploy`; see `signed_if_asked`."""
    deploy.add_argument("--sign", type=Path, metavar="KEY", help="sign the document with this private key first")


def signed_if_asked(options: argparse.Namespace, body: bytes) -> bytes:
    """The document as it is, or with `--sign` signed."""
    if options.sign is None:
        return body
    from agent.trust.signing import signed  # with the library for it only where it is asked for

    return signed(body, options.sign)


def _new(options: argparse.Namespace) -> int:
    from agent.trust.keys import make_pair

    pair = make_pair(options.directory, options.name)
    if options.json:
        print(json.dumps({"id": pair.id, "private": str(pair.private), "public": str(pair.public)}))
        return 0
    print(f"{pair.private}: signs; keep it secret, no core needs it")
    print(f"{pair.public}: the key {pair.id}; give it to each core that is to trust it, in topics.yaml:")
    print(f"  policy: {{trusted_keys: [{pair.public.name}]}}")
    return 0


def _show(options: argparse.Namespace) -> int:
    from agent.trust.keys import id_of_file

    id, kind = id_of_file(options.file)
    print(json.dumps({"id": id, "kind": kind}) if options.json else f"{id} {kind} {options.file}")
    return 0


def _sign(options: argparse.Namespace) -> int:
    from agent.cli.commands import document_bytes
    from agent.trust.signing import sign_file

    sign_file(document_bytes(options.file), options.key, options.output)
    print(f"{options.output}: signed")
    return 0
