"""A small bridge from MQTT to MLServer's HTTP: paho in a thread, the inferences on an event loop over kept connections.

bridge.py PORT REQUEST-TOPIC RESULT-TOPIC HTTP-PORT
"""

import asyncio
import socket
import sys

import aiohttp
import paho.mqtt.client as mqtt

port, request, result, http = sys.argv[1:]
url = f"http://127.0.0.1:{http}/v2/models/score/infer"


async def main():
    loop = asyncio.get_running_loop()
    headers = {"content-type": "application/json"}
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=64), headers=headers) as session:

        async def infer(client, message):
            async with session.post(url, data=message.payload) as response:
                client.publish(result, await response.read(), message.qos)

        def on_message(client, userdata, message):
            asyncio.run_coroutine_threadsafe(infer(client, message), loop)

        client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
        client.on_message = on_message
        client.on_socket_open = lambda c, u, sock: sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.connect("127.0.0.1", int(port))
        client.subscribe(request, 1)
        client.loop_start()
        await asyncio.Event().wait()


asyncio.run(main())
