"""Several requests at a time; keeps a note of each in its own directory, and samples of those that ask for it."""

from __future__ import annotations

import asyncio
from typing import Any

from functions.sdk import Context

under_way = 0


async def handler(event: dict[str, Any], context: Context) -> dict[str, Any]:
    global under_way
    under_way += 1
    try:
        seen = under_way
        with (context.state_dir / "notes").open("a") as notes:
            notes.write(f"{context.request}\n")
        await asyncio.sleep(event["seconds"])
        if "keep" in event:
            context.capture(reason=event["keep"], output={"seconds": event["seconds"]})
        return {"under_way": seen, "notes": len((context.state_dir / "notes").read_text().splitlines())}
    finally:
        under_way -= 1
