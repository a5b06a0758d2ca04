// A client that compresses every message and is never silent: node between.js URL. It sends text after text, a few of them
// at a time, and checks their echoes. What it gets beside these it prints: `text TEXT`, or `binary OCTETS` in hexadecimal
// digits. At SIGTERM it prints `echoed COUNT` and what was negotiated.

import { WebSocket } from "ws";

const AT_A_TIME = 4;

const socket = new WebSocket(process.argv[2], { perMessageDeflate: { threshold: 0 } });

// Each is in the window of those before it.
const text = (number) => `${number} all work and no play`.repeat(1 + (number % 50));

let [said, echoed] = [0, 0];
const say = () => socket.send(text(said++));

socket.on("open", () => {
  for (let n = 0; n < AT_A_TIME; n += 1) say();
});

socket.on("message", (data, isBinary) => {
  if (isBinary || data.toString() !== text(echoed)) {
    return console.log(isBinary ? `binary ${data.toString("hex")}` : `text ${data}`);
  }
  echoed += 1;
  say();
});

process.on("SIGTERM", () => {
  console.log(`echoed ${echoed} ${socket.extensions}`);
  socket.close();
});
socket.on("close", (code) => console.log(`closed ${code}`));
socket.on("error", (error) => console.log(`error ${error.message}`));
