// A schema whose subscription says once where it is served, then stays open.

import { GraphQLObjectType, GraphQLSchema, GraphQLString } from "graphql";

const text = { type: GraphQLString };

export const QUERY = "subscription { server }";

export function schema(name) {
  async function* server() {
    yield { server: name };
    await new Promise(() => {});
  }
  const query = new GraphQLObjectType({ name: "Query", fields: { server: text } });
  const fields = { server: { ...text, subscribe: server } };
  return new GraphQLSchema({ query, subscription: new GraphQLObjectType({ name: "Subscription", fields }) });
}
