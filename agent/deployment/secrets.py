"""A group's secrets, opened for its workers: asked of a short-lived child, so that the agent loads no cryptography.

What a function gets is what its access policies name, through the first frame of its workers: never a file, never an
environment variable, never a log.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from agent.deployment.definition import Function
from agent.deployment.short_lived import answer_of, main_of
from agent.deployment.store import Group
from agent.errors import AgentError, IntegrityError, TransientError

OPENER: Final = main_of("agent.deployment.opener")
MAX_BYTES: Final = 8 * 1024 * 1024  # of all secrets of one function: they go in a frame's header


class Opened:
    """The secrets of one group, in the clear; shows nothing of itself.

    Args:
        secrets: by resource Id, as `opener` gives them.
        trouble: why there are none.
    """

    __slots__ = ("_secrets", "_trouble")

    def __init__(self, secrets: Mapping[str, Mapping[str, Any]], trouble: AgentError | None = None) -> None:
        self._secrets = secrets
        self._trouble = trouble

    def of(self, function: Function) -> list[dict[str, Any]]:
        """What a worker of the function is told: ``{id, arn, versions}`` each.

        Raises:
            AgentError: SECRETS_TOO_LARGE, or why they could not be opened.
        """
        if not function.secrets:
            return []
        if self._trouble is not None:
            raise self._trouble
        told = [_told(id, self._secrets[id]) for id in function.secrets]
        size = sum(len(v.get("SecretString", v.get("SecretBinary", b""))) for each in told for v in each["versions"])
        if size > MAX_BYTES:
            text = f"the secrets of the function {function.id} are larger than {MAX_BYTES} bytes together"
            raise AgentError("SECRETS_TOO_LARGE", text, "Give it fewer of them, or fewer staging labels.")
        return told


def _told(id: str, secret: Mapping[str, Any]) -> dict[str, Any]:
    versions = [dict(each) for each in secret["Versions"]]
    for each in versions:
        if "SecretBinary" in each:
            each["SecretBinary"] = base64.b64decode(each["SecretBinary"])
    return {"id": id, "arn": secret["ARN"], "versions": versions}


def open_all(state: Path, group: Group) -> Opened:
    """The group's secrets. Blocks for a child's life, `DEADLINE_S` at most.

    Raises:
        IntegrityError: SECRET_UNREADABLE.
        TransientError: OPENER_LOST.
    """
    if not group.secrets:
        return Opened({})
    wanted = [[id, sealed.arn, str(sealed.file)] for id, sealed in group.secrets.items()]
    question = {"parent": os.getpid(), "state": str(state), "secrets": wanted}
    answer = answer_of(OPENER, json.dumps(question).encode(), _lost)
    if "code" in answer:
        raise IntegrityError(answer["code"], answer["message"], answer["remedy"])
    return Opened(answer["opened"])


def _lost(how: str) -> TransientError:
    return TransientError("OPENER_LOST", f"the process that opens secrets {how}", "See the agent's log; deploy again.")
