"""A V1 Lambda whose top level never returns: nobody calls its handler."""

import json
import time

import greengrasssdk

client = greengrasssdk.client("iot-data")
turn = 0
while True:
    turn += 1
    client.publish(topic="turns", payload=json.dumps({"turn": turn}))
    time.sleep(0.2)


def function_handler(event, context):
    return "never"
