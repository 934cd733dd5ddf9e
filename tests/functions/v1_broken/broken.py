"""A V1 Lambda that needs what this core has not."""

from greengrasssdk.stream_manager import StreamManagerClient

client = StreamManagerClient()


def function_handler(event, context):
    return None
