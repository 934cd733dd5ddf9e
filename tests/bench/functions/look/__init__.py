"""The bench's function for images: 224 x 224 x 3 bytes in, ten scores out; the first eight bytes are its id."""

from __future__ import annotations

from typing import Any

import numpy as np

from functions.sdk import Context


def handler(event: bytes, context: Context) -> dict[str, Any]:
    image = np.frombuffer(event, "uint8").reshape(1, 224, 224, 3)
    outputs = context.model().predict({"image": image})
    return {"id": event[:8].decode(), "scores": outputs["scores"][0].tolist()}
