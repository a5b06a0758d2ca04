// A chat in rooms whose server keeps no list of who is in them: it gives each text to the sidecar beside it, which knows
// where the room is. Rooms are keys: /rooms/7 is the room 7.
//
//   WSPOOL_API_URL=http://127.0.0.1:7482 node rooms.js --listen 127.0.0.1:3001 --name server-1

import { readFile } from "node:fs/promises";
import { parseArgs } from "node:util";
import { WebSocketServer } from "ws";

const { values: options } = parseArgs({
  options: {
    listen: { type: "string", default: "127.0.0.1:3000" },
    name: { type: "string", default: "server" },
  },
});
const { hostname: host, port } = new URL(`tcp://${options.listen}`);
const { WSPOOL_API_URL: api, WSPOOL_API_TOKEN_FILE: tokenFile } = process.env;

async function tell(room, text) {
  const headers = { "content-type": "text/plain" };
  if (tokenFile) headers.authorization = `Bearer ${(await readFile(tokenFile, "utf8")).trim()}`;
  const url = `${api}/v1/keys/${encodeURIComponent(room)}/messages`;
  const response = await fetch(url, { method: "POST", headers, body: text });
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.detail);
}

const server = new WebSocketServer({ host, port: Number(port) });

server.on("connection", (socket, request) => {
  const room = decodeURIComponent(request.url.match(/^\/rooms\/([^/?]+)/)?.[1] ?? "lobby");
  socket.send(`${options.name} has the room ${room}`);
  let last = Promise.resolve();
  socket.on("message", (data) => {
    // `/to ROOM TEXT` goes to another room, wherever that is. One after the other: so they stay in order.
    const [, other, text] = data.toString().match(/^\/to (\S+) (.*)$/s) ?? [null, room, data.toString()];
    last = last.then(() => tell(other, text)).catch((error) => socket.send(`not sent: ${error.message}`));
  });
  socket.on("error", (error) => console.error(error.message));
});
