// A server that tells who asks for it its name, for libraries without a protocol of their own.

import { WebSocketServer } from "ws";

export const QUESTION = "where";

export function serve(server, name) {
  new WebSocketServer({ server }).on("connection", (socket) => {
    socket.on("message", (data) => String(data) === QUESTION && socket.send(name));
  });
}
