"""Makes each call that greengrasssdk has, as its event asks, and says what came of it."""

import base64
import io
import json

import greengrasssdk
from greengrass_ipc_python_sdk.ipc_facade import GreengrassServiceClient, GreengrassServiceMessage

iot = greengrasssdk.client("iot-data")
functions = greengrasssdk.client("lambda")
secrets = greengrasssdk.client("secretsmanager")


def publish(event):
    payload = event["payload"].encode()
    more = {"queueFullPolicy": event["policy"]} if "policy" in event else {}
    iot.publish(topic=event["topic"], payload=io.BytesIO(payload) if event.get("file") else payload, **more)


def shadow(event):
    call = getattr(iot, event["operation"] + "_thing_shadow")
    more = {"payload": json.dumps(event["payload"]).encode()} if "payload" in event else {}
    if "raw" in event:
        more["payload"] = event["raw"].encode()
    return json.loads(call(thingName=event["thing"], **more)["payload"])


def invoke(event):
    context = {"ClientContext": base64.b64encode(json.dumps(event["context"]).encode())} if "context" in event else {}
    more = {key: event[key] for key in ("Qualifier", "InvocationType") if key in event}
    payload = json.dumps(event["payload"]) if "payload" in event else b""
    found = functions.invoke(FunctionName=event["function"], Payload=payload, **context, **more)
    said = found["Payload"]
    said = said.read() if hasattr(said, "read") else said
    return {"error": found["FunctionError"], "payload": said.decode()}


def facade(event):
    message = GreengrassServiceMessage(payload=json.dumps(event["payload"]).encode())
    found = GreengrassServiceClient(event["function"]).call(message)
    return {"error": found.func_err, "payload": found.payload.decode()}


def secret(event):
    found = secrets.get_secret_value(**event["ask"])
    created = found.pop("CreatedDate")
    return {**found, "year": created.year}


def stream(event):
    greengrasssdk.client("streammanager")


def function_handler(event, context):
    try:
        return {"gave": globals()[event["do"]](event)}
    except Exception as error:
        return {"raised": type(error).__name__, "text": str(error)}
