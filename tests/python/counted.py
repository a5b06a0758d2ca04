"""Peers with an extension of their own, which counts messages: one of somebody else's would put it out. counted.py is an
echo server, and says its port; counted.py URL is a client, which says `echoed NUMBER` for each text that has come back."""

import asyncio
import sys
from dataclasses import replace

from websockets.asyncio.client import connect
from websockets.asyncio.server import serve
from websockets.exceptions import ProtocolError
from websockets.extensions import ClientExtensionFactory, Extension, ServerExtensionFactory
from websockets.frames import CTRL_OPCODES


class Counted(Extension):
    """In front of each message is how many came before it."""

    name = "x-counted"

    def __init__(self):
        self.sent = self.received = 0

    def encode(self, frame):
        if frame.opcode in CTRL_OPCODES:
            return frame
        self.sent += 1
        return replace(frame, data=b"%d " % (self.sent - 1) + frame.data)

    def decode(self, frame, *, max_size=None):
        if frame.opcode in CTRL_OPCODES:
            return frame
        count, _, data = bytes(frame.data).partition(b" ")
        if count != b"%d" % self.received:
            raise ProtocolError(f"message {self.received} says that it is {count}")
        self.received += 1
        return replace(frame, data=data)


class Factory(ClientExtensionFactory, ServerExtensionFactory):
    name = Counted.name

    def get_request_params(self):
        return []

    def process_response_params(self, params, accepted_extensions):
        return Counted()

    def process_request_params(self, params, accepted_extensions):
        return [], Counted()


async def echo(socket):
    async for text in socket:
        await socket.send(text)


async def listen():
    server = await serve(echo, "127.0.0.1", 0, extensions=[Factory()])
    print("port", server.sockets[0].getsockname()[1], flush=True)
    await asyncio.Future()


async def talk(url):
    async with connect(url, extensions=[Factory()]) as socket:
        number = 0
        while True:
            await socket.send(f"text {number}")
            assert await socket.recv() == f"text {number}"
            print("echoed", number, flush=True)
            number += 1
            await asyncio.sleep(0.01)


asyncio.run(talk(sys.argv[1]) if len(sys.argv) > 1 else listen())
