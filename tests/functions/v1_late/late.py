"""A V1 Lambda whose top level takes a while, and has a helper module beside it."""

import os
import time

import greengrasssdk
import late_helper

time.sleep(float(os.environ.get("TOP_LEVEL_S", "0.5")))
client = greengrasssdk.client("iot-data")


def function_handler(event, context):
    with open("late_helper.py") as file:  # V1 code runs in its own folder
        return {"helped": late_helper.help(event), "own": file.readline().strip()}
