"""Whether a document is taken, here and now: the document's own rules, the core's policy, and what is on the core."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from agent.deployment.definition import NEW, REDEPLOYMENT, Deployment
from agent.deployment.document import parse, read_accepted
from agent.deployment.envelope import Envelope, UnprovenError, envelope_of
from agent.deployment.journal import Record
from agent.deployment.prerequisites import folders_of
from agent.deployment.proof import signer_of
from agent.deployment.store import Store
from agent.errors import RejectedError
from agent.settings import Settings

Admit = Callable[[Deployment], None]
Prove = Callable[[Envelope, Iterable[bytes]], str]


class Admission:
    """Reads documents for the deployer. All methods block.

    Args:
        admit: raises RejectedError for what only the rest of the agent can see, such as a cycle of subscriptions.
        prove: who signed an envelope, see `signer_of`.
    """

    def __init__(self, store: Store, settings: Settings, admit: Admit | None, prove: Prove = signer_of) -> None:
        self._store = store
        self._settings = settings
        self._admit = admit
        self._prove = prove

    def check(self, body: bytes, *, retained: bool, floor: int | None) -> Deployment:
        """What a document asks for.

        Args:
            floor: the highest sequence that was committed.

        Raises:
            RejectedError: it is refused; UnprovenError where nobody trusted stands behind it.
            TransientError: VERIFIER_LOST.
        """
        deployment = self._parse(body, retained=retained)
        _check_sequence(deployment, floor)
        if deployment.type == REDEPLOYMENT:
            deployment = _with_content(deployment, self._parse_content())
        folders_of(deployment, self._settings.functions)
        if self._admit is not None:
            self._admit(deployment)
        return deployment

    def _parse(self, body: bytes, *, retained: bool = False) -> Deployment:
        """The deployment, its signature verified where this core trusts keys: before anything in it is believed."""
        policy, signed_by = self._settings.policy, None
        envelope = envelope_of(body) if policy.trusted_keys else None
        if envelope is not None:
            signed_by = self._prove(envelope, [key.raw for key in policy.trusted_keys])
        return parse(body, core=self._settings.core, policy=policy, retained=retained, signed_by=signed_by)

    def _parse_content(self) -> Deployment:
        """The document of the group that runs, under the policy as it is now: its keys may not be those of its time."""
        try:
            return self._parse(self._content(self._store.current_number()))
        except UnprovenError as error:
            text = f"the document of the group that runs cannot be deployed again: {error.message}"
            remedy = "Send the whole document, signed, with a new DeploymentId."
            raise RejectedError(error.code, text, remedy) from error

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
        probation=deployment.probation or content.probation,
        retry_quarantined=deployment.retry_quarantined,
    )


def _check_sequence(deployment: Deployment, floor: int | None) -> None:
    if floor is not None and deployment.sequence is not None and deployment.sequence <= floor:
        text = f"Marram.Sequence {deployment.sequence} is too low: {floor} was committed on this core already"
        raise RejectedError("SEQUENCE_TOO_LOW", text, f"Send it with a Sequence above {floor}.")
