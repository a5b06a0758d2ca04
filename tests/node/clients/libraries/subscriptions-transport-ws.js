import { execute, subscribe } from "graphql";
import { SubscriptionClient, SubscriptionServer } from "subscriptions-transport-ws";
import { QUERY, schema } from "./graphql.js";

export function serve(server, name) {
  SubscriptionServer.create({ schema: schema(name), execute, subscribe }, { server, path: "/" });
}

export function connect(entry, user, at) {
  const client = new SubscriptionClient(`ws://${entry}/?user=${user}`, { reconnect: true }, WebSocket);
  client.request({ query: QUERY }).subscribe({ error: console.log, next: ({ data }) => at(data.server) });
}
