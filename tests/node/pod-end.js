// What a container says at its end.

import { writeFileSync } from "node:fs";

/**
 * Leaves what `state` returns as the message of the container's end when the signal comes: after what has come before it,
 * and is not read yet.
 */
export function answerTo(signal, state, ends) {
  process.on(signal, () =>
    setImmediate(() => {
      writeFileSync("/dev/termination-log", JSON.stringify(state()));
      if (ends) process.exit();
    }),
  );
}
