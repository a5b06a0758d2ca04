// The server speaks ActionCable: a welcome, a ping every three seconds, confirmed subscriptions.

import { EventEmitter } from "node:events";
import { WebSocketServer } from "ws";

const PROTOCOL = "actioncable-v1-json";
const BEAT = 3_000; // Milliseconds. After six seconds without one a client takes its connection for stale.

export function serve(server, name) {
  const handleProtocols = (offered) => offered.has(PROTOCOL) && PROTOCOL;
  new WebSocketServer({ server, path: "/cable", handleProtocols }).on("connection", (socket) => {
    const send = (message) => socket.send(JSON.stringify(message));
    send({ type: "welcome" });
    const beat = setInterval(() => send({ type: "ping", message: Math.floor(Date.now() / 1_000) }), BEAT);
    socket.on("close", () => clearInterval(beat));
    socket.on("message", (data) => {
      const { command, identifier } = JSON.parse(data);
      if (command !== "subscribe") return;
      send({ type: "confirm_subscription", identifier });
      send({ identifier, message: name });
    });
  });
}

export async function connect(entry, user, at) {
  const { createConsumer } = await library();
  createConsumer(`ws://${entry}/cable?user=${user}`).subscriptions.create("Lobby", { received: at });
}

/** The library, in what it takes for a browser with a visible page. */
async function library() {
  const events = new EventEmitter().setMaxListeners(0);
  globalThis.addEventListener ??= events.on.bind(events);
  globalThis.removeEventListener ??= events.off.bind(events);
  globalThis.document ??= { visibilityState: "visible" };
  return import("@rails/actioncable");
}
