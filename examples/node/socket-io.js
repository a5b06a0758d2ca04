// A chat in rooms by Socket.IO, whose own Redis adapter takes each text to the other servers: an application as it is
// without wspool, which needs no change for it. Users are keys, so a room has members at several servers:
// io("http://127.0.0.1:3000", { query: { user: "ann", room: "7" } }).
//
//   REDIS_URL=redis://127.0.0.1:6379 node socket-io.js --listen 127.0.0.1:3001 --name server-1

import { createServer } from "node:http";
import { parseArgs } from "node:util";
import { createAdapter } from "@socket.io/redis-adapter";
import { Redis } from "ioredis";
import { Server } from "socket.io";

const { values: options } = parseArgs({
  options: {
    listen: { type: "string", default: "127.0.0.1:3000" },
    name: { type: "string", default: "server" },
  },
});
const { hostname: host, port } = new URL(`tcp://${options.listen}`);
const [publisher, subscriber] = [1, 2].map(() => new Redis(process.env.REDIS_URL ?? "redis://127.0.0.1:6379"));
for (const redis of [publisher, subscriber]) redis.on("error", (error) => console.error(`Redis: ${error.message}`));

const http = createServer();
const io = new Server(http, { adapter: createAdapter(publisher, subscriber) });

io.on("connection", async (socket) => {
  const { user = "somebody", room = "lobby" } = socket.handshake.query;
  await socket.join(room);
  socket.emit("welcome", options.name, room);
  socket.on("say", (text, other = room) => io.to(other).emit("said", user, text));
});

// What was asked before has been answered then: the adapter has subscribed, and no text is missed.
await subscriber.ping();
http.listen(Number(port), host);
