"""The groups of the state directory, and the one link that says which of them runs.

    objects/<hex>/{tree/, manifest.json}       see `objects`
    groups/<n>/{document, group.json}          the exact bytes that were deployed, and which object is what
    groups/<n>/{resources,functions}/<Id>      links to objects
    groups/<n>/secrets/<Id>                    secrets as they were then, sealed, see `vault`
    current -> groups/<n>                      the whole truth: swap, rollback and recovery are one rename of it
    run/                                       the workers' own directories; made here, filled elsewhere
    staging/                                   what is being fetched and unpacked
    deployments/                               the journal and its documents, see `journal`

All methods block. One process writes, the one that holds the state directory's lock.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from dataclasses import field, replace
from pathlib import Path
from typing import Any, Final

from agent.deployment import durable
from agent.deployment.document import Deployment, read_accepted
from agent.deployment.journal import JournalFile
from agent.deployment.objects import ObjectRef, Objects, file_digest
from agent.errors import AgentError, IntegrityError
from agent.settings import Retention
from agent.values import dataclass

__all__ = ["Group", "Known", "ObjectRef", "Store"]

FORMAT: Final = 1


@dataclass(frozen=True, slots=True)
class Sealed:
    """A secret on disk: its ARN, its file, and the SHA-256 of that (hex)."""

    arn: str
    file: Path
    sha256: str


@dataclass(frozen=True, slots=True)
class Group:
    """A group whose objects are all here.

    Attributes:
        number: of its directory below ``groups/``; never used twice. 0: the empty group before the first.
        objects: its models' objects by resource Id.
        code: its functions' folders as objects by function Id; a model endpoint has none.
        previous: the number of the group that was current when this one was written.
        secrets: by resource Id.
    """

    number: int
    deployment: Deployment
    objects: Mapping[str, ObjectRef]
    code: Mapping[str, ObjectRef]
    previous: int | None = None
    secrets: Mapping[str, Sealed] = field(default_factory=dict)

    @property
    def versions(self) -> dict[str, str]:
        """The version of each resource, ``sha256:..`` by Id."""
        return {id: ref.version for id, ref in self.objects.items()}


@dataclass(frozen=True, slots=True)
class Known:
    """Which object a source gave when it had this ETag."""

    etag: str
    hex: str


def _write_secrets(directory: Path, deployment: Deployment, sealed: Mapping[str, bytes]) -> dict[str, list[str]]:
    """Writes a group's sealed secrets, for the agent's user alone; returns [ARN, SHA-256] of each."""
    written: dict[str, list[str]] = {}
    if sealed:
        directory.mkdir(mode=0o700)
    for secret in deployment.secrets:
        file = directory / secret.id
        file.touch(0o600)
        file.write_bytes(sealed[secret.id])
        written[secret.id] = [secret.arn, file_digest(file)]
    return written


def empty_group() -> Group:
    """The group of a core that nothing was deployed to."""
    return Group(0, Deployment("", "ResetDeployment", None, ""), {}, {})


class Store:
    """The state directory's deployments.

    Args:
        root: the state directory, absolute; made where it is missing.
        retention: what `prune` leaves of earlier groups.
    """

    def __init__(self, root: Path, retention: Retention | None = None) -> None:
        self.root = root
        self._retention = retention or Retention()
        self.objects = Objects(root)
        self._groups = root / "groups"
        self._current = root / "current"
        for directory in (self._groups, root / "run", root / "deployments"):
            directory.mkdir(parents=True, exist_ok=True)
        self.journal = JournalFile(root / "deployments")

    def clean(self) -> None:
        """Removes what was half written when the last agent or installer ended. Only while no installer runs."""
        self.objects.clean()
        for directory in (self.root, self._groups):
            for entry in os.scandir(directory):
                if entry.name.endswith(durable.TEMPORARY):
                    durable.remove(Path(entry.path))

    def numbers(self) -> list[int]:
        """The numbers of all groups that are there, ascending."""
        return sorted(int(entry.name) for entry in os.scandir(self._groups) if entry.name.isdecimal())

    def current_number(self) -> int | None:
        """The number of the group that `current` leads to; None: there is none."""
        try:
            return int(os.readlink(self._current).rpartition("/")[2])
        except (FileNotFoundError, ValueError):
            return None

    def current(self) -> Group | None:
        """The group that `current` leads to.

        Raises:
            IntegrityError: GROUP_DAMAGED.
        """
        number = self.current_number()
        return None if number is None else self.group(number)

    def group(self, number: int) -> Group:
        """A group that was written.

        Raises:
            IntegrityError: GROUP_DAMAGED, it is missing or cannot be read.
        """
        directory = self._groups / str(number)
        try:
            values = json.loads((directory / "group.json").read_bytes())
            deployment = read_accepted((directory / "document").read_bytes())
            deployment = replace(
                deployment,
                id=values["deploymentId"],
                type=values["type"],
                body_digest=values["bodyDigest"],
                sequence=values["sequence"],
            )
            objects = {id: self.objects.ref(hex) for id, hex in values["resources"].items()}
            code = {id: self.objects.ref(hex) for id, hex in values["functions"].items()}
            secrets = {
                id: Sealed(arn, directory / "secrets" / id, sha256)
                for id, (arn, sha256) in values.get("secrets", {}).items()
            }
            return Group(number, deployment, objects, code, values["previous"], secrets)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, AgentError) as error:
            text = f"the group {number} cannot be read: {error}"
            raise IntegrityError("GROUP_DAMAGED", text, "Deploy it again.") from error

    def verify(self, group: Group) -> None:
        """Reads every file of a group's objects, and its secrets as they are sealed.

        Raises:
            IntegrityError: OBJECT_DAMAGED, GROUP_DAMAGED.
        """
        for id, sealed in group.secrets.items():
            if not sealed.file.is_file() or file_digest(sealed.file) != sealed.sha256:
                text = f"the secret {id} of the group {group.number} is not what it was"
                raise IntegrityError("GROUP_DAMAGED", text, "Deploy it again.")
        for hex in {ref.hex for ref in (*group.objects.values(), *group.code.values())}:
            self.objects.verify(hex)

    def write_group(
        self,
        number: int,
        deployment: Deployment,
        body: bytes,
        objects: Mapping[str, str],
        code: Mapping[str, str],
        known: Mapping[str, Known] | None = None,
        secrets: Mapping[str, bytes] | None = None,
    ) -> Group:
        """Writes a group whose objects are there; durable at return, and nothing leads to it yet.

        Args:
            number: higher than any before; a directory that is there is replaced, as nothing can lead to it.
            body: the document that gives the group its contents.
            objects, code: the names of the objects by resource Id and function Id.
            known: by source, which ETag its object had.
            secrets: sealed, by resource Id.
        """
        assert number != self.current_number()
        final = self._groups / str(number)
        durable.remove(final)
        staged = self._groups / f"{number}{durable.TEMPORARY}"
        durable.remove(staged)
        for kind, names in (("resources", objects), ("functions", code)):
            (staged / kind).mkdir(parents=True)
            for id, hex in names.items():
                (staged / kind / id).symlink_to(f"../../../objects/{hex}")
        (staged / "document").write_bytes(body)
        sealed = _write_secrets(staged / "secrets", deployment, secrets or {})
        values = {
            "format": FORMAT,
            "deploymentId": deployment.id,
            "type": deployment.type,
            "bodyDigest": deployment.body_digest,
            "sequence": deployment.sequence,
            "resources": dict(objects),
            "functions": dict(code),
            "previous": self.current_number(),
            "secrets": sealed,
            "known": {name: [k.etag, k.hex] for name, k in (known or {}).items()},
        }
        (staged / "group.json").write_text(json.dumps(values, indent=1))
        durable.sync_tree(staged)
        durable.place(staged, final)
        return self.group(number)

    def document(self, number: int) -> bytes:
        """The document that gave a group its contents.

        Raises:
            OSError: there is none.
        """
        return (self._groups / str(number) / "document").read_bytes()

    def swap(self, number: int | None) -> None:
        """Makes `current` lead to a group, or to none; durable at return, idempotent, never in between."""
        if number is None or number == 0:
            durable.remove(self._current)
            durable.sync(self.root)
            return
        if not (self._groups / str(number) / "group.json").is_file():
            raise IntegrityError("GROUP_DAMAGED", f"there is no group {number}", "Deploy it again.")
        durable.link(self._current, f"groups/{number}")

    def known(self) -> dict[str, Known]:
        """By source, what it last gave, as groups (the newest first) and objects tell; only what is still there."""
        found: dict[str, Known] = {}
        names = set(self.objects.names())
        for number in reversed(self.numbers()):
            for source, (etag, hex) in self._known_of(number).items():
                if hex in names:
                    found.setdefault(source, Known(etag, hex))
        for hex in names:
            try:
                manifest = self.objects.manifest(hex)
            except IntegrityError:
                continue
            if manifest.get("etag") and manifest.get("source"):
                found.setdefault(manifest["source"], Known(manifest["etag"], hex))
        return found

    def sealed(self) -> dict[str, Path]:
        """By ARN, the newest seal of each secret that is here."""
        found: dict[str, Path] = {}
        for number in reversed(self.numbers()):
            try:
                secrets = self.group(number).secrets
            except IntegrityError:
                continue
            for each in secrets.values():
                found.setdefault(each.arn, each.file)
        return found

    def _known_of(self, number: int) -> dict[str, Any]:
        try:
            known = json.loads((self._groups / str(number) / "group.json").read_bytes())["known"]
        except (OSError, ValueError, KeyError):
            return {}
        return dict(known)

    def prune(self, keep: Collection[int | None] = ()) -> None:
        """Removes groups beyond what is retained, and objects that no group needs. Only while no installer runs.

        Args:
            keep: the groups that stay whatever their age; the current one and its previous one always stay.
        """
        kept = self._retained({number for number in keep if number})
        for number in self.numbers():
            if number not in kept:
                durable.remove(self._groups / str(number))
        self.objects.prune(self._needed(self.numbers()))

    def _retained(self, kept: set[int]) -> set[int]:
        """The groups that stay: `kept`, the current and its previous one, and the newest as far as there is room."""
        current = self.current_number()
        if current is None:
            return kept
        kept |= {current, self._previous_of(current) or current}
        older = [number for number in reversed(self.numbers()) if number <= current]
        most = self._retention.max_bytes
        for number in older[: self._retention.groups]:
            if most is not None and number not in kept and self._bytes({*kept, number}) > most:
                break
            kept.add(number)
        return kept

    def _bytes(self, numbers: Collection[int]) -> int:
        """The bytes of all objects that these groups need."""
        return sum(self.objects.size(hex) for hex in self._needed(numbers))

    def _previous_of(self, number: int) -> int | None:
        try:
            return self.group(number).previous
        except IntegrityError:
            return None

    def _needed(self, numbers: Collection[int]) -> set[str]:
        """The names of all objects that these groups' links lead to; one that cannot be read keeps its objects too."""
        needed: set[str] = set()
        for number in numbers:
            for kind in ("resources", "functions"):
                directory = self._groups / str(number) / kind
                if not directory.is_dir():
                    continue
                needed.update(os.readlink(entry.path).rpartition("/")[2] for entry in os.scandir(directory))
        return needed
