"""Asks the agent from an asynchronous handler."""

from __future__ import annotations

import asyncio
from typing import Any

from functions.errors import CodedError
from functions.sdk import Context


async def handler(event: Any, context: Context) -> Any:
    if event == "wrong":
        try:
            context.invoke("echo", {})
        except CodedError as error:
            return {"code": error.code}
    calls = [asyncio.to_thread(context.invoke, "echo", {"n": n}) for n in range(event)]
    return [each["echo"]["n"] for each in await asyncio.gather(*calls)]
