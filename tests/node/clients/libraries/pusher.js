// The server speaks version 7 of Pusher's protocol. A client's application key, which is in its path, says who it is.

import PusherModule from "pusher-js";
import { WebSocketServer } from "ws";

const Pusher = PusherModule.Pusher ?? PusherModule;

export function serve(server, name) {
  new WebSocketServer({ server }).on("connection", (socket) => {
    const send = (event, data, channel) => socket.send(JSON.stringify({ event, data: JSON.stringify(data), channel }));
    send("pusher:connection_established", { socket_id: "1.1", activity_timeout: 120 });
    socket.on("message", (message) => {
      const { event, data } = JSON.parse(message);
      if (event === "pusher:ping") send("pusher:pong", {});
      if (event !== "pusher:subscribe") return;
      send("pusher_internal:subscription_succeeded", {}, data.channel);
      send("here", name, data.channel);
    });
  });
}

export function connect(entry, user, at) {
  const [wsHost, wsPort] = entry.split(":");
  const options = { cluster: "", wsHost, wsPort, forceTLS: false, enabledTransports: ["ws"], enableStats: false };
  new Pusher(user, options).subscribe("lobby").bind("here", at);
}
