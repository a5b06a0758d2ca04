import { WebSocket as PartyWebSocket } from "partysocket";
import { QUESTION, serve } from "./greeter.js";

export { serve };

export function connect(entry, user, at) {
  const socket = new PartyWebSocket(`ws://${entry}/?user=${user}`);
  socket.addEventListener("open", () => socket.send(QUESTION));
  socket.addEventListener("message", ({ data }) => at(data));
}
