// Socket.IO clients as the library makes them: node socket-io-client.js URL COUNT. Each prints `here USER SERVER`
// when it has been greeted, `upgraded USER TRANSPORT`, and `gone USER REASON`.

import { io } from "socket.io-client";

const [url, count] = process.argv.slice(2);

for (let number = 0; number < Number(count); number += 1) {
  const user = `user-${number}`;
  const socket = io(url, { query: { user }, forceNew: true, reconnectionDelay: 100 });
  socket.on("server", (server) => console.log(`here ${user} ${server}`));
  socket.io.on("open", () => socket.io.engine.on("upgrade", ({ name }) => console.log(`upgraded ${user} ${name}`)));
  socket.on("disconnect", (reason) => console.log(`gone ${user} ${reason}`));
}
