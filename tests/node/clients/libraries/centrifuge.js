// The server speaks Centrifugo's protocol in JSON: commands by line, each answered under its id.

import { Centrifuge } from "centrifuge";
import { WebSocketServer } from "ws";

const LINE = "\n";

export function serve(server, name) {
  new WebSocketServer({ server, path: "/connection/websocket" }).on("connection", (socket) => {
    const answer = (command) => {
      if (command.connect) return { connect: { client: "client", version: "0.0.0", ping: 25, pong: true } };
      if (command.rpc) return { rpc: { data: name } };
    };
    socket.on("message", (data) => {
      const commands = String(data).split(LINE).filter(Boolean).map((line) => JSON.parse(line));
      const replies = commands.filter(({ id }) => id).map((command) => ({ id: command.id, ...answer(command) }));
      if (replies.length > 0) socket.send(replies.map((reply) => JSON.stringify(reply)).join(LINE));
    });
  });
}

export function connect(entry, user, at) {
  const client = new Centrifuge(`ws://${entry}/connection/websocket?user=${user}`, { websocket: WebSocket });
  client.on("connected", async () => at((await client.rpc("where", {})).data));
  client.on("disconnected", ({ code, reason }) => console.log(`error disconnected for good: ${code} ${reason}`));
  client.connect();
}
