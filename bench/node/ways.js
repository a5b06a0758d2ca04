// Ways from one server to a client of another. Each connects a client for every key, which passes on what it hears, and
// returns how the sending server sends a text to a key. The promise of that is kept when the sender knows that it is sent.

import { once } from "node:events";
import { Agent, request } from "node:http";
import { json } from "node:stream/consumers";
import { setTimeout as sleep } from "node:timers/promises";
import { createAdapter } from "@socket.io/redis-adapter";
import { Redis } from "ioredis";
import { Server } from "socket.io";
import { io } from "socket.io-client";
import { WebSocket } from "ws";

export const ways = { ring, redis, "socket.io": socketIo };

// `from` is the local API of the sending server's sidecar, `to` the sidecar that owns the keys.
async function ring({ from, to, keys }, hear) {
  await connectAll(to, keys, hear);
  const agent = new Agent({ keepAlive: true });
  return async (key, text) => {
    const answer = await post(`http://${from}/v1/keys/${key}/messages`, agent, text);
    if (answer.written !== 1) throw new Error(`sent to ${key}: ${JSON.stringify(answer)}`);
  };
}

// `from` is Redis; `prefix` what its channels begin with.
async function redis({ from, to, prefix, keys }, hear) {
  await connectAll(to, keys, hear);
  const publisher = new Redis(from);
  const channel = (key) => `${prefix}key:${key}`;
  const channels = keys.map(channel);
  await until(async () => {
    const counts = await publisher.pubsub("NUMSUB", ...channels);
    return counts.filter((count) => Number(count) === 1).length === keys.length;
  });
  return (key, text) => publisher.publish(channel(key), text);
}

// This process is one of two servers beside the Redis at `from`; clients are at the other one.
async function socketIo({ from, to, keys }, hear) {
  const server = new Server({ adapter: createAdapter(new Redis(from), new Redis(from)) });
  await until(async () => (await server.of("/").adapter.serverCount()) === 2);
  await Promise.all(
    keys.map(async (user) => {
      const client = io(`http://${to}`, { transports: ["websocket"], forceNew: true, auth: { user } });
      client.on("message", (text) => hear(user, text));
      await new Promise((resolve) => client.once("ready", resolve));
    }),
  );
  return (key, text) => server.to(key).emit("message", text);
}

// One WebSocket for each key, greeted by its app.
async function connectAll(to, keys, hear) {
  await Promise.all(
    keys.map(async (key) => {
      const socket = new WebSocket(`ws://${to}/?user=${key}`, { perMessageDeflate: false });
      await once(socket, "message");
      socket.on("message", (data) => hear(key, data.toString()));
    }),
  );
}

function post(url, agent, text) {
  return new Promise((resolve, reject) => {
    const headers = { "Content-Type": "text/plain" };
    const sending = request(url, { method: "POST", agent, headers }, (answer) => json(answer).then(resolve, reject));
    sending.on("error", reject);
    sending.end(text);
  });
}

async function until(holds) {
  while (!(await holds())) await sleep(10);
}
