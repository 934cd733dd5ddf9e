"""Keeps WINDOW inferences outstanding at an HTTP server, one on each kept connection; one line of JSON, as load.c's.

http_load.py PORT PAYLOAD-FILE WINDOW SECONDS
"""

import asyncio
import json
import sys
import time

port, file, window, seconds = sys.argv[1:]
with open(file, "rb") as opened:
    body = opened.read()
head = (
    f"POST /v2/models/score/infer HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
)
asked = head.encode() + b"\r\n\r\n" + body


async def ask(until, taken):
    reader, writer = await asyncio.open_connection("127.0.0.1", int(port))
    while (began := time.perf_counter()) < until:
        writer.write(asked)
        answered = await reader.readuntil(b"\r\n\r\n")
        if not answered.startswith(b"HTTP/1.1 200"):
            sys.exit(f"the server said {answered[:200]!r}")
        length = answered.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
        await reader.readexactly(int(length))
        taken.append((time.perf_counter() - began) * 1e6)
    writer.close()


async def main():
    taken = []
    began = time.perf_counter()
    await asyncio.gather(*(ask(began + float(seconds), taken) for _ in range(int(window))))
    elapsed = time.perf_counter() - began
    taken.sort()
    quantiles = {f"p{name}_us": taken[int(len(taken) * q)] for name, q in (("50", 0.5), ("99", 0.99), ("999", 0.999))}
    print(json.dumps({"answers": len(taken), "seconds": elapsed, "unanswered": 0, **quantiles, "cpu_s": {}}))


asyncio.run(main())
