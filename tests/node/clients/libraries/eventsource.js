import { EventSource } from "eventsource";

export function serve(server, name) {
  server.on("request", (request, response) => {
    response.writeHead(200, { "content-type": "text/event-stream", "cache-control": "no-store" });
    response.write(`data: ${name}\n\n`);
  });
}

export function connect(entry, user, at) {
  new EventSource(`http://${entry}/events?user=${user}`).addEventListener("message", ({ data }) => at(data));
}
