// A client that compresses every message: node client.js URL. It sends messages of many sizes and checks the echoes,
// prints `echoed` with what was negotiated, then stays and prints what it is sent and how its connection ended.

import { randomBytes } from "node:crypto";
import { WebSocket } from "ws";

const socket = new WebSocket(process.argv[2], { perMessageDeflate: { threshold: 0 }, maxPayload: 64 << 20 });

// Text that compresses well, repeated in the window of the messages before it, and bytes that do not compress.
const messages = [0, 1, 125, 126, 65_535, 65_536, 1 << 20].flatMap((size) => [
  { data: Buffer.from("all work and no play ".repeat(size / 21 + 1).slice(0, size)), binary: false },
  { data: randomBytes(size), binary: true },
]);
const pending = [...messages];

socket.on("open", () => {
  for (const { data, binary } of messages) socket.send(data, { binary });
});

socket.on("message", (data, isBinary) => {
  const expected = pending.shift();
  if (!expected) return console.log(`message ${data}`);
  if (isBinary !== expected.binary || !expected.data.equals(data)) {
    console.log(`error an echo of ${expected.data.length} bytes is wrong`);
    process.exit(1);
  }
  if (pending.length === 0) console.log(`echoed ${socket.extensions}`);
});

process.on("SIGTERM", () => socket.close());
socket.on("close", (code, reason) => console.log(`closed ${code} ${reason}`));
socket.on("error", (error) => console.log(`error ${error.message}`));
