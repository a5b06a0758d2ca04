// Each user has a document of its own, in which each server that it reaches writes its name.

import { setupWSConnection, docs } from "@y/websocket-server/utils";
import { WebSocketServer } from "ws";
import { WebsocketProvider } from "y-websocket";
import * as Y from "yjs";

export function serve(server, name) {
  new WebSocketServer({ server }).on("connection", (socket, request) => {
    const docName = `${name}${new URL(request.url, "http://localhost").pathname}`;
    setupWSConnection(socket, request, { docName });
    docs.get(docName).getMap("where").set(name, true);
  });
}

// Each client listens for the end of the process.
process.setMaxListeners(0);

export function connect(entry, user, at) {
  const document = new Y.Doc();
  document.getMap("where").observe(({ keysChanged }) => keysChanged.forEach((name) => at(name)));
  new WebsocketProvider(`ws://${entry}`, user, document, { params: { user }, disableBc: true });
}
