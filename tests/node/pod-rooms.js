// A server of rooms for pods: node pod-rooms.js NAME. Whoever connects to /rooms/ROOM is greeted with {"server", "at", "still"}:
// its name, when the connection came (milliseconds since 1970), and the longest time in milliseconds that its event loop stood
// still since it greeted somebody before. What somebody says is said to the whole room. The message that its container ends
// with is {"connections"}: how many were left at SIGTERM.

import { WebSocketServer } from "ws";
import { answerTo } from "./pod-end.js";

const name = process.argv[2];
const rooms = new Map(); // A room's path to the set of its sockets.
const server = new WebSocketServer({ host: "0.0.0.0", port: 3000 });

const BEAT = 20; // Milliseconds between two looks at the clock.
let beat = performance.now();
let still = 0;
function stoodStill() {
  const now = performance.now();
  still = Math.max(still, Math.round(now - beat) - BEAT);
  return now;
}
setInterval(() => (beat = stoodStill()), BEAT);

server.on("connection", (socket, { url }) => {
  stoodStill(); // After a standstill connections may be served before timers.
  socket.send(JSON.stringify({ server: name, at: Date.now(), still }));
  still = 0;
  if (!rooms.has(url)) rooms.set(url, new Set());
  const present = rooms.get(url).add(socket);
  socket.on("message", (data) => {
    for (const listener of present) listener.send(data.toString());
  });
  socket.on("close", () => {
    present.delete(socket);
    if (present.size === 0) rooms.delete(url);
  });
  socket.on("error", (error) => console.error(error.message));
});
answerTo("SIGTERM", () => ({ connections: server.clients.size }), true);
