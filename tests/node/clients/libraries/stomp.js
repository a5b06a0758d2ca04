import { Client } from "@stomp/stompjs";
import StompServer from "stomp-broker-js";

export function serve(server, name) {
  const broker = new StompServer({ server, path: "/stomp" });
  broker.subscribe("/where", (user) => broker.send(`/here/${user}`, {}, name));
}

export function connect(entry, user, at) {
  const client = new Client({ brokerURL: `ws://${entry}/stomp?user=${user}` });
  client.onConnect = () => {
    client.subscribe(`/here/${user}`, ({ body }) => at(body));
    client.publish({ destination: "/where", body: user });
  };
  client.activate();
}
