"""Whether a document is taken, here and now: the document's own rules, the core's policy, and what is on the core."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from agent.deployment.definition import NEW, REDEPLOYMENT, Deployment
from agent.deployment.document import parse, read_accepted
from agent.deployment.journal import Record
from agent.deployment.prerequisites import folders_of
from agent.deployment.store import Store
from agent.errors import RejectedError
from agent.settings import Settings

Admit = Callable[[Deployment], None]


class Admission:
    """Reads documents for the deployer. All methods block.

    Args:
        admit: raises RejectedError for what only the rest of the agent can see, such as a cycle of subscriptions.
    """

    def __init__(self, store: Store, settings: Settings, admit: Admit | None) -> None:
        self._store = store
        self._settings = settings
        self._admit = admit

    def check(self, body: bytes, *, retained: bool, floor: int | None) -> Deployment:
        """What a document asks for.

        Args:
            floor: the highest sequence that was committed.

        Raises:
            RejectedError: it is refused.
        """
        policy, core = self._settings.policy, self._settings.core
        deployment = parse(body, core=core, policy=policy, retained=retained)
        _check_sequence(deployment, floor)
        if deployment.type == REDEPLOYMENT:
            content = parse(self._content(self._store.current_number()), core=core, policy=policy)
            deployment = _with_content(deployment, content)
        folders_of(deployment, self._settings.functions)
        if self._admit is not None:
            self._admit(deployment)
        return deployment

    def read(self, record: Record) -> tuple[Deployment, bytes]:
        """What an admitted record asks for, and the document of its contents: a Redeployment's is another's.

        Raises:
            RejectedError: NOTHING_DEPLOYED.
            OSError: the document is not there.
        """
        body = self._store.journal.body(record.body_digest)
        deployment = read_accepted(body)
        if deployment.type == REDEPLOYMENT:
            body = self._content(record.previous)
            deployment = _with_content(deployment, read_accepted(body))
        return deployment, body

    def _content(self, number: int | None) -> bytes:
        try:
            if number is not None:
                return self._store.document(number)
        except OSError:
            pass  # said below: for whoever deploys it is the same
        raise RejectedError("NOTHING_DEPLOYED", "there is no group to deploy again", f"Send a {NEW}.")


def _with_content(deployment: Deployment, content: Deployment) -> Deployment:
    return replace(
        content,
        id=deployment.id,
        type=deployment.type,
        sequence=deployment.sequence,
        body_digest=deployment.body_digest,
        warnings=(*content.warnings, *deployment.warnings),
    )


def _check_sequence(deployment: Deployment, floor: int | None) -> None:
    if floor is not None and deployment.sequence is not None and deployment.sequence <= floor:
        text = f"Marram.Sequence {deployment.sequence} is too low: {floor} was committed on this core already"
        raise RejectedError("SEQUENCE_TOO_LOW", text, f"Send it with a Sequence above {floor}.")
