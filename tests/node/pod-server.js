// A server for pods: node pod-server.js NAME [--deaf]. It greets each connection with its name. The message that its
// container ends with is {"connections", "hook"}: how many connections were left at SIGTERM, and at GET /hook. After
// GET /sick it answers GET /healthz with 500. A deaf one does not end at SIGTERM.

import { createServer } from "node:http";
import { WebSocketServer } from "ws";
import { answerTo } from "./pod-end.js";

const [name, deaf] = process.argv.slice(2);
let sick = false;
let hook = null;

const http = createServer((request, response) => {
  if (request.url === "/hook") hook = sockets.clients.size;
  sick ||= request.url === "/sick";
  response.writeHead(sick && request.url === "/healthz" ? 500 : 200).end();
});
const sockets = new WebSocketServer({ server: http });

sockets.on("connection", (socket) => {
  socket.send(JSON.stringify({ server: name }));
  socket.on("error", (error) => console.error(error.message));
});
http.listen(3000, "0.0.0.0");
answerTo("SIGTERM", () => ({ connections: sockets.clients.size, hook }), deaf !== "--deaf");
