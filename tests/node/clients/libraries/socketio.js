import { Server } from "socket.io";
import { io } from "socket.io-client";

export function serve(server, name) {
  new Server(server).on("connection", (socket) => socket.on("where", (answer) => answer(name)));
}

/** Connects by the transports given; by its own default they are polling, and WebSocket as soon as that works. */
export function connectBy(transports) {
  return (entry, user, at) => {
    const socket = io(`http://${entry}`, { query: { user }, forceNew: true, ...(transports && { transports }) });
    const ask = () => socket.emit("where", at);
    socket.on("connect", () => {
      const { engine } = socket.io;
      if (transports || engine.transport.name === "websocket") ask();
      else engine.once("upgrade", ask);
    });
    socket.on("connect_error", (error) => console.log("error", error.message, error.description));
  };
}
