"""Keys and signed documents, made as whoever deploys makes them."""

from __future__ import annotations

import functools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from agent.deployment import verifier
from agent.deployment.envelope import PAYLOAD_TYPE, Envelope, Signature, seal
from agent.deployment.proof import signer_of
from agent.settings import TrustedKey
from agent.trust import keys
from agent.trust.public_keys import raw_public_key


class Signer:
    """A key pair on disk that signs bytes of any kind, right or wrong."""

    def __init__(self, directory: Path, name: str = "cloud") -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.pair = keys.make_pair(directory, name)
        self.id = self.pair.id
        self._key = keys.load_private(self.pair.private)

    @property
    def trusted(self) -> TrustedKey:
        """The public key as the settings have it."""
        return TrustedKey(self.pair.public, raw_public_key(self.pair.public.read_bytes()))

    def envelope(self, document: dict[str, Any] | bytes, *, kind: str = PAYLOAD_TYPE) -> Envelope:
        """An envelope with this key's signature over a document that may lack anything."""
        payload = document if isinstance(document, bytes) else json.dumps(document).encode()
        unsigned = Envelope(payload, kind, ())
        return replace(unsigned, signatures=(self.signature(unsigned),))

    def signature(self, envelope: Envelope) -> Signature:
        """This key's signature over an envelope's payload."""
        return Signature(self.id, self._key.sign(envelope.signed_bytes))

    def sign(self, document: dict[str, Any] | bytes, *, binary: bool = False) -> bytes:
        """The bytes of `envelope`."""
        return seal(self.envelope(document), binary=binary)


# As the agent asks, but with the verifier's function in this process: for tests that ask a thousand times.
signer_here = functools.partial(signer_of, ask=lambda request: verifier.verdict(json.loads(request)))
