"""Asks the agent for what its event says, from its handler and from threads of its own."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

from functions.sdk import Context, InvokeError, ShadowError


def handler(event: Any, context: Context) -> Any:
    try:
        return {"gave": DOERS[event["do"]](event, context)}
    except (InvokeError, ShadowError) as error:
        return {"raised": type(error).__name__, "code": error.code, "handled": getattr(error, "handled", None)}


def invoke(event: Any, context: Context) -> Any:
    return context.invoke(event["function"], event.get("payload"), wait=event.get("wait", True))


def many(event: Any, context: Context) -> Any:
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda n: context.invoke("echo", {"n": n}), range(event["count"])))
    return [each["echo"]["n"] for each in answers]


def shadow(event: Any, context: Context) -> Any:
    pump = context.shadow("pump")
    if event["what"] == "round":
        before = pump.update(desired={"on": True})["version"]
        delta = pump.get()["state"]["delta"]
        after = pump.update(reported={"on": True}, version=before)["version"]
        return {"delta": delta, "versions": after - before, "delta_after": pump.get()["state"].get("delta")}
    return pump.delete() if event["what"] == "delete" else pump.update(desired={}, version=999)


def now(event: Any, context: Context) -> Any:
    context.publish_now("now/here", {"n": event["n"]})
    raise ValueError("published all the same")


DOERS = {"invoke": invoke, "many": many, "shadow": shadow, "now": now}
