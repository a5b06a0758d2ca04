// The server speaks SignalR's hub protocol, by the library's own encoders. It accepts the connections that it has
// negotiated, and no other's.

import { randomUUID } from "node:crypto";
import { HttpTransportType, HubConnectionBuilder, JsonHubProtocol, LogLevel, MessageType, NullLogger } from "@microsoft/signalr";
import { MessagePackHubProtocol } from "@microsoft/signalr-protocol-msgpack";
import { WebSocketServer } from "ws";

const PROTOCOLS = { json: new JsonHubProtocol(), messagepack: new MessagePackHubProtocol() };
const SEPARATOR = "\u001e";
const TRANSPORTS = [{ transport: "WebSockets", transferFormats: ["Text", "Binary"] }];

export function serve(server, name) {
  const negotiated = new Set();
  server.on("request", (request, response) => {
    const { pathname } = new URL(request.url, "http://localhost");
    if (request.method !== "POST" || pathname !== "/hub/negotiate") return response.writeHead(404).end();
    const [connectionId, connectionToken] = [randomUUID(), randomUUID()];
    negotiated.add(connectionToken);
    const answer = { negotiateVersion: 1, connectionId, connectionToken, availableTransports: TRANSPORTS };
    response.writeHead(200, { "content-type": "application/json" }).end(JSON.stringify(answer));
  });

  const hubs = new WebSocketServer({ noServer: true });
  server.on("upgrade", (request, socket, head) => {
    const token = new URL(request.url, "http://localhost").searchParams.get("id");
    if (token !== null && !negotiated.delete(token)) return socket.end("HTTP/1.1 404 Not Found\r\n\r\n");
    hubs.handleUpgrade(request, socket, head, (hub) => converse(hub, name));
  });
}

/** A hub with one method, which answers with its server's name. */
function converse(socket, name) {
  let protocol;
  socket.on("message", (data, binary) => {
    if (!protocol) {
      protocol = PROTOCOLS[JSON.parse(String(data).replace(SEPARATOR, "")).protocol];
      return socket.send(`{}${SEPARATOR}`);
    }
    const input = binary ? new Uint8Array(data).buffer : String(data);
    for (const { type, invocationId } of protocol.parseMessages(input, NullLogger.instance)) {
      if (type !== MessageType.Invocation) continue;
      socket.send(protocol.writeMessage({ type: MessageType.Completion, invocationId, result: name, headers: {} }));
    }
  });
}

/** Connects in an encoding; directly, or after a request that negotiates. */
export function connectBy(encoding, skipNegotiation) {
  const options = skipNegotiation ? { skipNegotiation, transport: HttpTransportType.WebSockets } : {};
  return (entry, user, at) => {
    const connection = new HubConnectionBuilder()
      .withUrl(`http://${entry}/hub?user=${user}`, options)
      .withHubProtocol(PROTOCOLS[encoding])
      .withAutomaticReconnect()
      .configureLogging(LogLevel.None)
      .build();
    const ask = async () => at(await connection.invoke("where"));
    connection.onreconnected(ask);
    connection.start().then(ask);
  };
}
