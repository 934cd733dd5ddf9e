"""A function's logger: lines on the worker's standard error, which the agent reads into its own log."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    Adapter = logging.LoggerAdapter[logging.Logger]
else:
    Adapter = logging.LoggerAdapter


class _RequestLogger(Adapter):
    def process(self, msg: Any, kwargs: Any) -> tuple[Any, Any]:
        request = self.extra["request"] if self.extra else "-"
        return f"[{request}] {msg}", kwargs


def request_logger(function: str, request: str) -> Adapter:
    """The logger of one request; gives standard error a format where the function has set up none."""
    if not logging.root.handlers:
        logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    return _RequestLogger(logging.getLogger(function), {"request": request})
