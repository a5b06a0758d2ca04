// Clients of a library: node clients.js LIBRARY HOST:PORT COUNT. Each says at which server it is whenever that server has
// answered it. Nothing here makes one reconnect: that is its library's part.

import { WebSocket } from "ws";

// As in browsers, and in later versions of Node.
globalThis.WebSocket ??= WebSocket;

const [library, entry, count] = process.argv.slice(2);
const { connect } = await import(`./libraries/${library}.js`);

for (let number = 0; number < Number(count); number += 1) {
  const user = `user-${number}`;
  await connect(entry, user, (name) => console.log(`at ${user} ${name}`));
}
