import { Aedes } from "aedes";
import { WebSocketServer, createWebSocketStream } from "ws";
import { connectBy } from "./mqtt.js";

export async function serve(server, name) {
  const broker = await Aedes.createBroker();
  const greeting = { topic: "where", payload: name, qos: 0 };
  broker.on("subscribe", (subscriptions, client) => client.publish(greeting, () => {}));
  const sockets = new WebSocketServer({ server, handleProtocols: () => "mqtt" });
  sockets.on("connection", (socket, request) => {
    const stream = createWebSocketStream(socket);
    stream.on("error", () => {}); // Its client has gone without a word.
    broker.handle(stream, request);
  });
}

export const connect = connectBy(4);
