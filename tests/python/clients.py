"""Clients that reconnect as the documentation of `websockets` shows it: clients.py HOST:PORT COUNT. Each says at which
server it is whenever that server has answered it."""

import asyncio
import sys

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed


async def client(entry, user):
    async for socket in connect(f"ws://{entry}/?user={user}"):
        try:
            await socket.send("where")
            async for name in socket:
                print("at", user, name, flush=True)
        except ConnectionClosed:
            continue


async def main(entry, count):
    await asyncio.gather(*(client(entry, f"user-{number}") for number in range(count)))


asyncio.run(main(sys.argv[1], int(sys.argv[2])))
