// A Socket.IO server for pods: node pod-socket-io.js NAME. It greets each connection with its name, and ends as
// pod-server.js does.

import { Server } from "socket.io";
import { answerTo } from "./pod-end.js";

const [name] = process.argv.slice(2);
const io = new Server(3000);
io.on("connection", (socket) => socket.emit("server", name));
answerTo("SIGTERM", () => ({ connections: io.engine.clientsCount }), true);
