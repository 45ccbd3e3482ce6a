// The station's events, whatever happens to the connection in between.

import * as api from "./api.js";

/** Events: "open" (again), "lost", and what the station sends: "job", "inspection", "products", "status". */
export const events = new EventTarget();

const KINDS = ["job", "inspection", "products", "status"];
const HEARTBEAT = 20_000; // milliseconds; a dead network tells a listening browser nothing
let source = null;
let lost = false;
let wait = 1000;

const tell = (type, detail) => events.dispatchEvent(new CustomEvent(type, { detail }));

/** Start listening; calling it again (after a login) starts afresh. */
export function listen() {
  source?.close();
  source = new EventSource(api.events());
  source.addEventListener("hello", () => {
    lost = false;
    wait = 1000;
    tell("open");
  });
  source.addEventListener("error", () => {
    lose();
    // Closed for good by an answer that was an error; the browser retries only when nothing answered.
    if (source.readyState === EventSource.CLOSED)
      setTimeout(() => document.hidden || listen(), (wait = Math.min(2 * wait, 15_000)));
  });
  for (const kind of KINDS) source.addEventListener(kind, (event) => tell(kind, JSON.parse(event.data)));
}

function lose() {
  if (!lost) tell("lost");
  lost = true;
}

api.wire.addEventListener("silence", lose);
setInterval(async () => {
  try {
    tell("status-read", await api.status(AbortSignal.timeout(HEARTBEAT / 2)));
    if (lost) listen();
  } catch (error) {
    if (error.status === 0) lose();
  }
}, HEARTBEAT);
document.addEventListener("visibilitychange", () => {
  if (!document.hidden && (lost || source?.readyState === EventSource.CLOSED)) listen();
});
