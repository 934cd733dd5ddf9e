"""A V1 Lambda that gets and gives bytes, under a name that its Executable says."""

import greengrasssdk

client = greengrasssdk.client("iot-data")


def reverse(event, context):
    assert isinstance(event, bytes)
    return event[::-1]
