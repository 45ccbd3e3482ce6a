// What this browser has inspected since the page was loaded. It outlives the change of tabs.

import * as api from "./api.js";
import { events } from "./events.js";
import { memory } from "./dom.js";
import { Pool, patiently, randomKey } from "./pool.js";
import { station } from "./station.js";
import { bytes } from "./format.js";

const MOST = 200; // items kept; the history has them all

const pool = new Pool(2);
let batch = 0;

/**
 * An item: {key, name, file, url, state, inspection, error, as, line}; state is "waiting", "sending", "done" or
 * "failed"; `as` the product it is inspected as, null to recognise it; `line`: it came from the watched source.
 */
export const session = Object.assign(new EventTarget(), {
  items: [], // newest first
  selected: null,
  product: memory.get("product"), // {id, name} or null
  following: memory.get("following", true),
  behind: null, // parts that came after the one that was picked while following; null: at the newest

  add(files, as = session.product) {
    batch += 1;
    const items = files.map((file) => ({
      key: randomKey(),
      name: file.name,
      file,
      url: URL.createObjectURL(file),
      state: "waiting",
      inspection: null,
      error: null,
      as,
      line: false,
      batch,
    }));
    if (items.length === 0) return;
    session.items.unshift(...items.toReversed());
    session.trim();
    session.tell("list");
    session.select(items[0]);
    for (const item of items) session.queue(item);
  },

  queue(item) {
    Object.assign(item, { state: "waiting", error: null });
    session.tell("item", item);
    pool.add(() => session.send(item));
  },

  async send(item) {
    if (!session.items.includes(item)) return;
    item.state = "sending";
    session.tell("item", item);
    try {
      const limit = station.status?.limits.bytes;
      if (limit && item.file.size > limit) {
        throw new api.ApiError(
          413,
          `${item.name} is too large: ${bytes(item.file.size)}.`,
          `A picture may have ${bytes(limit)}.`,
        );
      }
      item.inspection = await patiently(() =>
        api.inspect(item.file, { product: item.as?.id, reference: item.name, key: item.key }),
      );
      item.state = "done";
    } catch (error) {
      Object.assign(item, { state: "failed", error });
    }
    session.tell("item", item);
  },

  /** Inspect the same picture again, as a product that a human has named. */
  async again(inspection, product) {
    const before = session.items.find((item) => item.inspection?.id === inspection.id);
    const blob = before?.file ?? (await api.original(inspection.id));
    const name = before?.name ?? inspection.reference ?? "";
    session.add([new File([blob], name, { type: blob.type })], { id: product.id, name: product.name });
  },

  /** Take in a part that the watched source has shown. */
  take(inspection) {
    const item = {
      key: randomKey(),
      name: inspection.reference,
      file: null,
      url: null,
      state: "done",
      inspection,
      error: null,
      as: null,
      line: true,
    };
    session.items.unshift(item);
    session.trim();
    if (session.behind !== null) session.behind += 1;
    session.tell("list");
    if (session.behind === null) session.select(item);
  },

  /** A newer account of an inspection, such as a correction. */
  update(inspection) {
    const item = session.items.find((other) => other.inspection?.id === inspection.id);
    if (!item) return false;
    item.inspection = inspection;
    session.tell("item", item);
    return true;
  },

  select(item) {
    session.selected = item;
    session.tell("select");
  },

  /** Select what a human picked: following waits until it is asked to go on. */
  pick(item) {
    if (session.following && station.status?.watch)
      session.behind = item === session.items[0] ? null : (session.behind ?? 0);
    session.select(item);
  },

  step(by) {
    const at = session.items.indexOf(session.selected);
    const next = session.items[Math.min(session.items.length - 1, Math.max(0, at + by))];
    if (next && next !== session.selected) session.pick(next);
  },

  newest() {
    session.behind = null;
    if (session.items.length) session.select(session.items[0]);
  },

  follow(yes) {
    session.following = yes;
    session.behind = null;
    memory.set("following", yes);
    session.tell("list");
  },

  inspectAs(product) {
    session.product = product && { id: product.id, name: product.name };
    memory.set("product", session.product);
  },

  /** Take the waiting ones out of the line. */
  stop() {
    pool.clear();
    session.drop(session.items.filter((item) => item.state === "waiting"));
  },

  clear() {
    pool.clear();
    session.drop(session.items);
    session.behind = null;
  },

  drop(items) {
    for (const item of items) if (item.url) URL.revokeObjectURL(item.url);
    session.items = session.items.filter((item) => !items.includes(item));
    if (!session.items.includes(session.selected)) session.selected = session.items[0] ?? null;
    session.tell("list");
    session.tell("select");
  },

  trim() {
    const surplus = session.items
      .slice(MOST)
      .filter((item) => ["done", "failed"].includes(item.state) && item !== session.selected);
    for (const item of surplus) if (item.url) URL.revokeObjectURL(item.url);
    session.items = session.items.filter((item) => !surplus.includes(item));
  },

  tell(type, detail) {
    session.dispatchEvent(new CustomEvent(type, { detail }));
  },
});

events.addEventListener("inspection", ({ detail }) => {
  if (session.update(detail)) return;
  if (session.following && station.status?.watch && detail.source === "watch") session.take(detail);
});
