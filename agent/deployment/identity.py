"""What tells one document from another. Pure."""

from __future__ import annotations

import hashlib

from agent.deployment.document import deployment_id_of
from agent.deployment.envelope import payload_of


def identity_of(body: bytes, identity: bytes | None) -> tuple[str, str]:
    """The digest (hex) that a document goes by, whoever signed it and however often, and its DeploymentId.

    Args:
        identity: what tells it from others with its id, where that is not its bytes.
    """
    own = payload_of(body) if identity is None else identity
    return hashlib.sha256(own).hexdigest(), deployment_id_of(body)
