"""A V1 Lambda that others invoke: gives back what it got, or fails as it is asked to."""

import json
import os
import time

import greengrasssdk

lambdas = greengrasssdk.client("lambda")
iot = greengrasssdk.client("iot-data")


def lambda_handler(event, context):
    what = event.get("what") if isinstance(event, dict) else None
    if what == "raise":
        raise ValueError("it was asked to")
    if what == "exit":
        os._exit(3)
    if what == "sleep":
        time.sleep(event["seconds"])
    if what == "back":
        found = lambdas.invoke(FunctionName=event["function"], Payload=json.dumps(event["payload"]))
        said = found["Payload"]
        return {"error": found["FunctionError"], "said": (said.read() if hasattr(said, "read") else said).decode()}
    if what == "tell":
        iot.publish(topic="told", payload=json.dumps(event))
        return None
    return {"event": event, "custom": context.client_context.custom, "arn": context.invoked_function_arn}
