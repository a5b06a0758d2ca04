import ReconnectingWebSocket from "reconnecting-websocket";
import { QUESTION, serve } from "./greeter.js";

export { serve };

export function connect(entry, user, at) {
  const socket = new ReconnectingWebSocket(`ws://${entry}/?user=${user}`);
  socket.addEventListener("open", () => socket.send(QUESTION));
  socket.addEventListener("message", ({ data }) => at(data));
}
