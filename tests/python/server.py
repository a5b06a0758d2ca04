"""A server that tells who asks for it its name, twice, as two pods have it: server.py NAME NAME. Says where each listens,
and what Host each handshake had."""

import asyncio
import sys

from websockets.asyncio.server import serve
from websockets.exceptions import ConnectionClosed


async def main(names):
    def note(connection, request):
        print("host", request.headers["Host"], flush=True)

    for name in names:

        async def tell(socket, name=name):
            try:
                async for question in socket:
                    await socket.send(name)
            except ConnectionClosed:
                pass

        server = await serve(tell, "127.0.0.1", 0, process_request=note)
        print("port", name, server.sockets[0].getsockname()[1], flush=True)
    await asyncio.Future()


asyncio.run(main(sys.argv[1:]))
