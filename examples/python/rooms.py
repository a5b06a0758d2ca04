"""The chat of ../node/rooms.js in Python, with `websockets`: neither knows of the other, and they share their rooms.

    WSPOOL_API_URL=http://127.0.0.1:7482 python3 rooms.py --listen 127.0.0.1:3001 --name server-1
"""

import argparse
import asyncio
import json
import os
import re
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import quote, unquote
from urllib.request import Request, urlopen

from websockets.asyncio.server import serve

arguments = argparse.ArgumentParser()
arguments.add_argument("--listen", default="127.0.0.1:3000")
arguments.add_argument("--name", default="server")
options = arguments.parse_args()


def tell(room, text):
    headers = {"Content-Type": "text/plain"}
    if token_file := os.environ.get("WSPOOL_API_TOKEN_FILE"):
        headers["Authorization"] = "Bearer " + Path(token_file).read_text().strip()
    url = f"{os.environ['WSPOOL_API_URL']}/v1/keys/{quote(room, safe='')}/messages"
    try:
        urlopen(Request(url, text.encode(), headers, method="POST")).read()
    except HTTPError as error:
        raise RuntimeError(json.load(error)["detail"]) from error


async def chat(socket):
    path = re.match(r"/rooms/([^/?]+)", socket.request.path)
    room = unquote(path[1]) if path else "lobby"
    await socket.send(f"{options.name} has the room {room}")
    async for text in socket:
        # `/to ROOM TEXT` goes to another room, wherever that is.
        elsewhere = re.fullmatch(r"/to (\S+) (.*)", text, re.DOTALL)
        try:
            await asyncio.to_thread(tell, *(elsewhere.groups() if elsewhere else (room, text)))
        except (OSError, RuntimeError) as error:
            await socket.send(f"not sent: {error}")


async def main():
    host, port = options.listen.rsplit(":", 1)
    async with serve(chat, host, int(port)) as server:
        await server.serve_forever()


asyncio.run(main())
