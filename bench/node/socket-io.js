// A Socket.IO server with the Redis adapter: node socket-io.js PORT REDIS-URL. A client's room is its user.

import { createAdapter } from "@socket.io/redis-adapter";
import { Redis } from "ioredis";
import { Server } from "socket.io";

const [port, url] = process.argv.slice(2);
const io = new Server(Number(port), { adapter: createAdapter(new Redis(url), new Redis(url)) });
io.on("connection", async (socket) => {
  await socket.join(socket.handshake.auth.user);
  socket.emit("ready");
});
