import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { JSDOM } from "jsdom";
import { WebSocketServer } from "ws";

const { resolve } = createRequire(import.meta.url);

export function serve(server, name) {
  new WebSocketServer({ server }).on("connection", (socket) => {
    socket.on("message", (data) => {
      const { user } = JSON.parse(data);
      socket.send(`<p id="${user}">${name}</p>`);
    });
  });
}

let page;

/** A page in which one element for each user has a connection, and an element of the user's name the server's. */
async function open() {
  const { window } = new JSDOM("", { runScripts: "outside-only", url: "http://localhost/", pretendToBeVisual: true });
  // What browsers have or let out, and jsdom has not or wants to be given. The names here need no escapes.
  window.CSS = { escape: String };
  const { prototype } = window.XPathExpression;
  const { evaluate } = prototype;
  prototype.evaluate = function (node, type = 0, result = null) {
    return evaluate.call(this, node, type, result);
  };
  for (const script of ["htmx.org/dist/htmx.js", "htmx-ext-ws/ws.js"]) {
    window.eval(readFileSync(resolve(script), "utf8").replace(/^var htmx/, "window.htmx"));
  }
  await new Promise((ready) => window.document.addEventListener("DOMContentLoaded", ready));
  return window;
}

export async function connect(entry, user, at) {
  page ??= open();
  const { document, htmx } = await page;
  document.body.insertAdjacentHTML("beforeend", `
    <div hx-ext="ws" ws-connect="ws://${entry}/?user=${user}"><p id="${user}"></p></div>`);
  const element = document.body.lastElementChild;
  element.addEventListener("htmx:wsOpen", ({ detail }) => detail.socketWrapper.send(JSON.stringify({ user }), element));
  element.addEventListener("htmx:wsAfterMessage", () => at(document.getElementById(user).textContent));
  htmx.process(element);
}
