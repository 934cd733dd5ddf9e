"""The hand-written loop: paho and ONNX Runtime in the callback, as one would type it, and two that know more.

loop.py PORT REQUEST-TOPIC RESULT-TOPIC MODEL VARIANT: `typed` as it is; `nodelay` with TCP_NODELAY; `late` with that,
and each request acknowledged only when the broker has its result; `orjson` as `nodelay`, with a faster JSON.
"""

import json
import socket
import sys

import numpy as np
import onnxruntime
import paho.mqtt.client as mqtt

port, request, result, model, variant = sys.argv[1:]
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
image = session.get_inputs()[0].name == "image"
waiting = {}  # result's packet id: the request that it answers
if variant == "orjson":
    import orjson as json


def answer(body):
    if image:
        name, inputs = body[:8].decode(), {"image": np.frombuffer(body, "uint8").reshape(1, 224, 224, 3)}
    else:
        event = json.loads(body)
        name, inputs = event["id"], {"data": np.array([event["x"]], "float32")}
    return json.dumps({"id": name, "scores": session.run(None, inputs)[0][0].tolist()})


def on_message(client, userdata, message):
    sent = client.publish(result, answer(message.payload), message.qos)
    if variant == "late":
        waiting[sent.mid] = message


def on_publish(client, userdata, mid, reason, properties):
    message = waiting.pop(mid, None)
    if message is not None:
        client.ack(message.mid, message.qos)


client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, manual_ack=variant == "late")
client.on_message, client.on_publish = on_message, on_publish
if variant != "typed":
    client.on_socket_open = lambda c, u, sock: sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
client.connect("127.0.0.1", int(port))
client.subscribe(request, 1)
client.loop_forever()
