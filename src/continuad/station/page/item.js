// One inspection in a dialog: the viewer, its verdict, and the way to the ones before and after.

import { h, put } from "./dom.js";
import { announce, complain, dialog, failed, iconButton, waiting } from "./parts.js";
import * as api from "./api.js";
import { keys } from "./keys.js";
import { session } from "./session.js";
import { Viewer } from "./viewer.js";
import { VerdictPanel } from "./verdict.js";
import { sentence } from "./format.js";

/**
 * @param id the inspection to open
 * @param items returns the list around it; `more()` lengthens that list; `changed(inspection)` hears of corrections
 */
export async function openItem(id, { items = () => [], more = async () => {}, changed = () => {} } = {}) {
  const gone = new AbortController();
  const viewer = new Viewer(gone.signal, { inDialog: true });
  const told = (inspection) => {
    session.update(inspection);
    changed(inspection);
  };
  let close = () => {};
  const panel = new VerdictPanel({
    changed: told,
    again: async (inspection, product) => {
      try {
        await session.again(inspection, product);
        close();
        location.hash = "#/inspect";
      } catch (error) {
        complain(error);
      }
    },
  });
  const side = h("div", { class: "side" }, waiting());
  const [before, after] = [
    iconButton("left", "Newer (←)", { id: "item-newer", onclick: () => step(-1) }),
    iconButton("right", "Older (→)", { id: "item-older", onclick: () => step(1) }),
  ];
  const place = h("span", { class: "muted" });

  async function show(which) {
    id = which;
    const at = items().findIndex((item) => item.id === id);
    before.disabled = at <= 0;
    after.disabled = at < 0;
    place.textContent = at < 0 ? "" : `${at + 1}`;
    try {
      const inspection = items()[at] ?? (await api.inspection(id, gone.signal));
      if (inspection.id !== id) return;
      viewer.show(inspection);
      panel.show(inspection);
      put(side, panel.element);
      announce(sentence(inspection));
    } catch (error) {
      if (error.name !== "AbortError")
        put(
          side,
          failed(error, () => show(which)),
        );
    }
  }
  async function step(by) {
    let at = items().findIndex((item) => item.id === id) + by;
    if (at >= items().length) {
      await more();
      at = Math.min(at, items().length - 1);
    }
    if (items()[at] && items()[at].id !== id) show(items()[at].id);
  }
  const judge = (truth) => () => panel.judge(truth).catch(complain);
  keys(
    { ArrowLeft: () => step(-1), ArrowRight: () => step(1), g: judge("good"), b: judge("bad"), inDialog: true },
    gone.signal,
  );
  const leave = () => close();
  window.addEventListener("hashchange", leave, { signal: gone.signal });
  const closed = dialog(
    "item",
    "Inspection",
    (end) => {
      close = end;
      return [
        h("div", { class: "row item-steps" }, before, place, after),
        h("div", { class: "inspect-body" }, h("div", { class: "stage-area" }, viewer.element), side),
      ];
    },
    { wide: true },
  );
  show(id);
  await closed;
  gone.abort();
}
