// The server speaks Discord's gateway in JSON. A client that was told to reconnect resumes its session at the address
// that its server gave it.

import { WebSocketManager } from "@discordjs/ws";
import { WebSocketServer } from "ws";

const op = { dispatch: 0, heartbeat: 1, identify: 2, resume: 6, hello: 10, heartbeatAck: 11 };

export function serve(server, name) {
  new WebSocketServer({ server }).on("connection", (socket, request) => {
    const send = (message) => socket.send(JSON.stringify(message));
    let sequence = 0;
    const dispatch = (t, d) => send({ op: op.dispatch, t, s: (sequence += 1), d });
    const { pathname } = new URL(request.url, "http://localhost");
    send({ op: op.hello, d: { heartbeat_interval: 41_250 } });
    socket.on("message", (data) => {
      const message = JSON.parse(data);
      if (message.op === op.heartbeat) send({ op: op.heartbeatAck });
      if (message.op === op.identify) {
        const resume_gateway_url = `ws://${request.headers.host}${pathname}`;
        dispatch("READY", { v: 10, session_id: pathname, resume_gateway_url, server: name });
      }
      if (message.op === op.resume) {
        dispatch(message.d.session_id === pathname ? "RESUMED" : "STRANGER", { server: name });
      }
    });
  });
}

export async function connect(entry, user, at) {
  const session_start_limit = { total: 1, remaining: 1, reset_after: 0, max_concurrency: 1 };
  const gateway = { url: `ws://${entry}/users/${user}`, shards: 1, session_start_limit };
  // By its own default all clients of a process share one session.
  let session = null;
  const retrieveSessionInfo = () => session;
  const updateSessionInfo = (shard, info) => (session = info);
  const rest = { get: async () => gateway };
  const manager = new WebSocketManager({ token: "token", intents: 0, rest, retrieveSessionInfo, updateSessionInfo });
  manager.on("dispatch", ({ data, t, d = data?.d }) => ["READY", "RESUMED"].includes(t ?? data?.t) && at(d.server));
  manager.on("error", (error) => console.log("error", error));
  manager.connect();
}
