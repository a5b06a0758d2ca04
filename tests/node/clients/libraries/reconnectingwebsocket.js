// The first of its name, by joewalnes: for browsers only.

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { JSDOM } from "jsdom";
import { QUESTION, serve } from "./greeter.js";

export { serve };

const { window } = new JSDOM("", { runScripts: "outside-only" });
window.eval(readFileSync(createRequire(import.meta.url).resolve("reconnectingwebsocket"), "utf8"));

export function connect(entry, user, at) {
  const socket = new window.ReconnectingWebSocket(`ws://${entry}/?user=${user}`);
  socket.onopen = () => socket.send(QUESTION);
  socket.onmessage = ({ data }) => at(data);
}
