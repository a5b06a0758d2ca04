// The chat server of ../src/bin/chat-server.rs in Node, with `ws`: the same words, none of our code.
//
//   node server.js --listen 127.0.0.1:3001 --name server-1

import { parseArgs } from "node:util";
import { WebSocketServer } from "ws";

const { values: options } = parseArgs({
  options: {
    listen: { type: "string", default: "127.0.0.1:3000" },
    name: { type: "string", default: "server" },
  },
});
const { hostname: host, port } = new URL(`tcp://${options.listen}`);

const rooms = new Map(); // A room's name to the set of its sockets.
const stats = { connects: 0, disconnects: 0, goodbyes: 0 };

const server = new WebSocketServer({ host, port: Number(port) });

server.on("listening", () => {
  const { address, port } = server.address();
  console.log(`${options.name} listens on ${address}:${port}`);
});

server.on("connection", (socket, request) => {
  stats.connects += 1;
  const query = new URL(request.url, "ws://localhost").searchParams;
  const user = query.get("user") || "guest";
  const room = query.get("room") || user;
  if (!rooms.has(room)) rooms.set(room, new Set());
  const present = rooms.get(room).add(socket);
  socket.send(JSON.stringify({ server: options.name, user, room }));

  socket.on("message", (data, isBinary) => {
    if (isBinary) return;
    const text = data.toString();
    if (text === "/stats") socket.send(JSON.stringify(stats));
    else for (const listener of present) listener.send(text);
  });

  socket.on("close", (code) => {
    stats.disconnects += 1;
    if (code !== 1006) stats.goodbyes += 1; // 1006: no close frame came.
    present.delete(socket);
    if (present.size === 0) rooms.delete(room);
  });

  socket.on("error", (error) => console.error(`${user}: ${error.message}`));
});

// As a container's first process Node would ignore both, and be killed when its grace period is over.
for (const signal of ["SIGINT", "SIGTERM"]) process.once(signal, () => process.exit());
