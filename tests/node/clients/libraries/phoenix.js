// The server speaks version 2 of Phoenix's channels in JSON: [join reference, reference, topic, event, payload].

import { Socket } from "phoenix";
import { WebSocketServer } from "ws";

const EVENTS = new Set(["phx_join", "phx_leave", "heartbeat"]);

export function serve(server, name) {
  new WebSocketServer({ server, path: "/socket/websocket" }).on("connection", (socket) => {
    socket.on("message", (data) => {
      const [joined, reference, topic, event] = JSON.parse(data);
      if (!EVENTS.has(event)) return;
      const response = event === "phx_join" ? { server: name } : {};
      socket.send(JSON.stringify([joined, reference, topic, "phx_reply", { status: "ok", response }]));
    });
  });
}

export function connect(entry, user, at) {
  const socket = new Socket(`ws://${entry}/socket`, { params: { user } });
  socket.connect();
  // The library joins again after each reconnect.
  socket.channel("lobby").join().receive("ok", ({ server }) => at(server));
}
