// No broker in JavaScript speaks MQTT 5 yet; this server knows of it what its clients need here.

import packets from "mqtt-packet";
import { WebSocketServer } from "ws";
import { connectBy } from "./mqtt.js";

const options = { protocolVersion: 5 };

export function serve(server, name) {
  const sockets = new WebSocketServer({ server, handleProtocols: () => "mqtt" });
  sockets.on("connection", (socket) => {
    const send = (packet) => socket.send(packets.generate(packet, options));
    const answers = {
      connect: () => send({ cmd: "connack", reasonCode: 0, sessionPresent: false }),
      pingreq: () => send({ cmd: "pingresp" }),
      subscribe: ({ messageId }) => {
        send({ cmd: "suback", messageId, granted: [0] });
        send({ cmd: "publish", topic: "where", payload: name, qos: 0 });
      },
    };
    const parser = packets.parser(options).on("packet", (packet) => answers[packet.cmd]?.(packet));
    socket.on("message", (data) => parser.parse(data));
  });
}

export const connect = connectBy(5);
