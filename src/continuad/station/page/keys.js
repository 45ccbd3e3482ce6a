// The keyboard: one listener, to which pages add keys for as long as they are shown.

import { atEnd } from "./dom.js";

const layers = [];

/** Let `handlers` ({ArrowLeft: call, g: call}) answer keys until `signal` is aborted; the newest layer goes first. */
export function keys(handlers, signal) {
  layers.push(handlers);
  atEnd(signal, () => layers.splice(layers.indexOf(handlers), 1));
}

const writes = (element) =>
  element.closest?.("textarea, select, [contenteditable]") !== null ||
  (element.tagName === "INPUT" && !["button", "checkbox", "file"].includes(element.type));

document.addEventListener("keydown", (event) => {
  if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey || writes(event.target)) return;
  const inDialog = document.querySelector("dialog[open]");
  for (const handlers of layers.toReversed()) {
    const handler = handlers[event.key];
    if (!handler || (inDialog && !handlers.inDialog)) continue;
    // Space and Enter belong to the button that has the focus.
    if ([" ", "Enter"].includes(event.key) && event.target.closest?.("button, a, summary, input")) return;
    event.preventDefault();
    handler(event);
    return;
  }
});
