// What a container says at its end.

import { writeFileSync } from "node:fs";

/** Leaves what `state` returns as the message of the container's end when the signal comes. */
export function answerTo(signal, state, ends) {
  process.on(signal, () => {
    writeFileSync("/dev/termination-log", JSON.stringify(state()));
    if (ends) process.exit();
  });
}
