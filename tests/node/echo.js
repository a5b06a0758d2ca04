// An echo server that compresses every message. Prints its port, and how each connection ended.

import { WebSocketServer } from "ws";

const deflate = { threshold: 0 };
const server = new WebSocketServer({ host: "127.0.0.1", port: 0, perMessageDeflate: deflate, maxPayload: 64 << 20 });

server.on("listening", () => console.log(`port ${server.address().port}`));

server.on("connection", (socket) => {
  socket.on("message", (data, isBinary) => socket.send(data, { binary: isBinary }));
  socket.on("close", (code) => console.log(`closed ${code}`));
  socket.on("error", (error) => console.log(`error ${error.message}`));
});
