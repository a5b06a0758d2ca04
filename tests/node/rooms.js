// Members of rooms in a Socket.IO chat: node rooms.js ROOMS MEMBERS URL... Member N enters room N % ROOMS by one of the
// URLs. `at USER SERVER` is printed when one has been welcomed, `heard USER TEXT` when it hears something. With each
// SIGTERM all say `ROUND USER` in their rooms.

import { io } from "socket.io-client";

const [rooms, members, ...urls] = process.argv.slice(2);

const sockets = Array.from({ length: Number(members) }, (_, number) => {
  const user = `user-${number}`;
  const query = { user, room: `room-${number % Number(rooms)}` };
  const socket = io(urls[number % urls.length], { query, forceNew: true, reconnectionDelay: 100 });
  socket.on("welcome", (server) => console.log(`at ${user} ${server}`));
  socket.on("said", (_, text) => console.log(`heard ${user} ${text}`));
  return { user, socket };
});

let round = 0;
process.on("SIGTERM", () => {
  round += 1;
  for (const { user, socket } of sockets) socket.emit("say", `${round} ${user}`);
});
