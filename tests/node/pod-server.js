// A server for pods: node pod-server.js NAME [--deaf]. It greets each connection with its name. The message that its
// container ends with is {"connections", "hook"}: how many connections were left at SIGTERM, and at GET /hook. After
// GET /sick it answers GET /healthz with 500. At POST /send?user=USER it sends the body to that user by the sidecar beside
// it, and answers what that has said. A deaf one does not end at SIGTERM.

import { readFileSync } from "node:fs";
import { createServer } from "node:http";
import { text } from "node:stream/consumers";
import { WebSocketServer } from "ws";
import { answerTo } from "./pod-end.js";

const [name, deaf] = process.argv.slice(2);
let sick = false;
let hook = null;

const { WSPOOL_API_URL: api, WSPOOL_API_TOKEN_FILE: tokenFile } = process.env;

async function send(user, body) {
  const authorization = `Bearer ${readFileSync(tokenFile, "utf8").trim()}`;
  const headers = { authorization, "content-type": "text/plain" };
  const answer = await fetch(`${api}/v1/keys/${user}/messages`, { method: "POST", headers, body });
  return answer.text();
}

const http = createServer((request, response) => {
  const [, user] = request.url.match(/^\/send\?user=(.*)$/) ?? [];
  if (user) {
    const sent = text(request).then((body) => send(user, body));
    return sent.then((said) => response.end(said)).catch((error) => response.writeHead(500).end(error.message));
  }
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
