import { createClient } from "graphql-ws";
import { useServer } from "graphql-ws/use/ws";
import { WebSocketServer } from "ws";
import { QUERY, schema } from "./graphql.js";

export function serve(server, name) {
  useServer({ schema: schema(name) }, new WebSocketServer({ server }));
}

export function connect(entry, user, at) {
  const client = createClient({ url: `ws://${entry}/?user=${user}` });
  client.subscribe({ query: QUERY }, {
    next: ({ data }) => at(data.server),
    error: (error) => console.log("error", error),
    complete: () => console.log("error completed"),
  });
}
