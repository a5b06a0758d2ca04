// A client in a pod: node pod-client.js URL. The message that its container ends with is what it was greeted with; it fails
// when there is no greeting.

import { writeFileSync } from "node:fs";
import WebSocket from "ws";

const socket = new WebSocket(process.argv[2]);
socket.on("message", (data) => {
  writeFileSync("/dev/termination-log", data);
  process.exit();
});
socket.on("close", () => process.exit(1));
socket.on("error", (error) => console.error(error.message));
