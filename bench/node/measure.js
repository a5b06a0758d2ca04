// Measures messages from one server to clients of another: node measure.js '{"way": "ring", "keys": [...], ...}', as
// messages.rs says. The sending server and the clients are this one process, so that one clock sees both ends. There is
// a sender for each key, which sends its next message when the one before has arrived and is known to be sent.

import { ways } from "./ways.js";

const BYTES = 128;
const WARM_MS = 1_000;
const TIME_MS = 3_000;
// By when everything has happened unless a message is lost.
const LIMIT_MS = 20_000;

const setting = JSON.parse(process.argv[2]);
const waiting = new Map();

setTimeout(() => {
  throw new Error(`nothing arrives any more at ${[...waiting.keys()]}`);
}, LIMIT_MS);

const send = await ways[setting.way](setting, (key, text) => {
  const arrived = performance.now();
  const heard = waiting.get(key);
  if (!heard) throw new Error(`${key} heard ${text}, which nobody has sent now`);
  waiting.delete(key);
  heard({ arrived, text });
});

// Sends to a key for some time; returns how long each message was on its way, in milliseconds.
async function sendTo(key, until) {
  const latencies = [];
  while (performance.now() < until) {
    const arrival = new Promise((resolve) => waiting.set(key, resolve));
    const began = performance.now();
    const sent = String(began).padEnd(BYTES);
    const [{ arrived, text }] = await Promise.all([arrival, send(key, sent)]);
    if (text !== sent) throw new Error(`${key} heard ${text} after ${sent}`);
    latencies.push(arrived - began);
  }
  return latencies;
}

async function sendFor(time) {
  const until = performance.now() + time;
  return (await Promise.all(setting.keys.map((key) => sendTo(key, until)))).flat();
}

await sendFor(WARM_MS);
const began = performance.now();
const usedBefore = process.cpuUsage();
const latencies = (await sendFor(TIME_MS)).sort((a, b) => a - b);
const seconds = (performance.now() - began) / 1_000;
const used = process.cpuUsage(usedBefore);
const cpu = (used.user + used.system) / 1_000_000 / latencies.length;
const percentile = (percent) => latencies[Math.floor((latencies.length * percent) / 100)] / 1_000;
console.log(JSON.stringify({ p50: percentile(50), p99: percentile(99), rate: latencies.length / seconds, cpu }));
process.exit(0);
