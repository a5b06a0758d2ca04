// The server of a library, twice, as two pods have it: node server.js LIBRARY NAME NAME. It says where each listens, and
// what Host each request had.

import { createServer } from "node:http";

const [library, ...names] = process.argv.slice(2);
const { serve } = await import(`./libraries/${library}.js`);

for (const name of names) {
  const server = createServer();
  const hosts = new Set();
  const note = ({ headers: { host } }) => hosts.has(host) || (hosts.add(host), console.log(`host ${host}`));
  server.on("upgrade", note);
  server.on("request", note);
  await serve(server, name);
  server.listen(0, "127.0.0.1", () => console.log(`port ${name} ${server.address().port}`));
}
