// Pictures from wherever they come: dropped files and folders, the clipboard, the file chooser.

import { atEnd, h, on } from "./dom.js";

const PICTURE = /\.(png|jpe?g|bmp|tiff?|webp|gif|ppm|pgm)$/i;

export const isPicture = (file) => file.type.startsWith("image/") || PICTURE.test(file.name);

/** Open the file chooser; resolves with pictures, none if it was cancelled. */
export function choose({ folder = false, id = "chooser" } = {}) {
  return new Promise((resolve) => {
    document.getElementById(id)?.remove();
    const input = h("input", {
      id,
      type: "file",
      class: "unseen",
      tabindex: -1,
      "aria-hidden": "true",
      multiple: true,
      accept: folder ? null : "image/*,.tif,.tiff,.bmp",
      webkitdirectory: folder,
    });
    input.addEventListener("change", () => resolve([...input.files].filter(isPicture)), { once: true });
    input.addEventListener("cancel", () => resolve([]), { once: true });
    document.body.append(input);
    input.click();
  });
}

/** All pictures of a drop, with those in folders below. */
export async function dropped(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (entries.length === 0) return [...transfer.files].filter(isPicture);
  const files = [];
  for (const entry of entries) await walk(entry, files);
  return files.filter(isPicture).sort((a, b) => a.name.localeCompare(b.name, undefined, { numeric: true }));
}

async function walk(entry, files) {
  if (entry.isFile) {
    files.push(await new Promise((resolve, reject) => entry.file(resolve, reject)));
    return;
  }
  const reader = entry.createReader();
  for (;;) {
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject)); // at most 100 at a time
    if (some.length === 0) return;
    for (const child of some) await walk(child, files);
  }
}

/** Take what is dropped on the page or pasted into it, until `signal` is aborted. */
export function intake(take, signal) {
  let depth = 0;
  const shade = (over) => document.body.classList.toggle("dragging", over);
  const files = (event) => event.dataTransfer?.types.includes("Files");
  on(
    document,
    "dragenter",
    (event) => {
      if (!files(event)) return;
      event.preventDefault();
      depth += 1;
      shade(true);
    },
    signal,
  );
  on(document, "dragover", (event) => files(event) && event.preventDefault(), signal);
  on(
    document,
    "dragleave",
    () => {
      depth = Math.max(0, depth - 1);
      if (depth === 0) shade(false);
    },
    signal,
  );
  on(
    document,
    "drop",
    async (event) => {
      event.preventDefault();
      depth = 0;
      shade(false);
      take(await dropped(event.dataTransfer));
    },
    signal,
  );
  on(
    document,
    "paste",
    (event) => {
      const pictures = [...(event.clipboardData?.files ?? [])].filter(isPicture);
      if (pictures.length) {
        event.preventDefault();
        take(pictures);
      }
    },
    signal,
  );
  atEnd(signal, () => shade(false));
}
