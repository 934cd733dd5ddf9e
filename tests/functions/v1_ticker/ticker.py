"""A V1 Lambda of the usual kind: its top level starts a timer that publishes for ever, and its handler answers."""

import json
import os
from threading import Timer

import greengrasssdk

client = greengrasssdk.client("iot-data")
ticks = 0


def tick():
    global ticks
    ticks += 1
    client.publish(topic="ticks/one", payload=json.dumps({"tick": ticks, "thing": os.environ["AWS_IOT_THING_NAME"]}))
    timer = Timer(0.2, tick)
    timer.daemon = True
    timer.start()


tick()


def function_handler(event, context):
    custom = context.client_context.custom
    client.publish(topic="heard/" + custom["subject"], payload=json.dumps({"event": event, "custom": custom}))
    return {
        "subject": custom["subject"],
        "request": context.aws_request_id,
        "arn": context.invoked_function_arn,
        "name": context.function_name,
        "version": context.function_version,
        "memory": context.memory_limit_in_mb,
        "remaining": context.get_remaining_time_in_millis(),
    }
