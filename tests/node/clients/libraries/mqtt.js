import mqtt from "mqtt";

/** Connects by a version of the protocol. The server tells its name to whoever subscribes. */
export function connectBy(protocolVersion) {
  return (entry, user, at) => {
    const client = mqtt.connect(`ws://${entry}/mqtt?user=${user}`, { protocolVersion, clientId: user });
    client.on("connect", () => client.subscribe("where"));
    client.on("message", (topic, payload) => at(String(payload)));
    client.on("error", (error) => console.log("error", error));
  };
}
