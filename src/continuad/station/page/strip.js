// The strip of thumbnails below the viewer, each with its verdict.

import { h, put, on } from "./dom.js";
import { icon } from "./icons.js";
import { button, progress, thumbnail } from "./parts.js";
import { session } from "./session.js";
import { SYMBOLS, WORDS, many, sentence } from "./format.js";

const STATES = { waiting: "waits", sending: "is being inspected", failed: "failed" };

export function strip(signal) {
  const cells = new Map();
  const list = h("div", {
    class: "thumbs",
    id: "strip",
    role: "listbox",
    "aria-label": "Inspected pictures, newest first",
    "aria-orientation": "horizontal",
  });
  const bar = progress("Pictures inspected", 0);
  const summary = h("div", { class: "summary", id: "strip-summary" });
  const stop = button("close", "Stop", { id: "strip-stop", class: "quiet", onclick: () => session.stop() });
  const again = button("retry", "Retry failed", {
    id: "strip-retry",
    class: "quiet",
    onclick: () => session.items.filter((item) => item.state === "failed").forEach((item) => session.queue(item)),
  });
  const clear = button("trash", "Clear", { id: "strip-clear", class: "quiet", onclick: () => session.clear() });
  const newest = button("play", "Go to the newest", {
    id: "go-newest",
    class: "primary",
    onclick: () => session.newest(),
  });
  const element = h(
    "section",
    { class: "strip", "aria-label": "Pictures" },
    h("div", { class: "strip-head" }, summary, newest, stop, again, clear),
    bar,
    list,
  );

  const draw = (item) => {
    const cell =
      cells.get(item) ??
      h("button", { type: "button", class: "thumb", role: "option", onclick: () => session.pick(item) });
    cells.set(item, cell);
    const { inspection, state } = item;
    const label = inspection?.label ?? state;
    cell.className = `thumb ${label}`;
    cell.dataset.test = "thumb";
    cell.dataset.label = label;
    cell.title = item.name || (inspection ? sentence(inspection) : "");
    cell.setAttribute("aria-label", `${item.name} ${inspection ? sentence(inspection) : STATES[state]}`);
    put(
      cell,
      item.url
        ? h("img", {
            src: item.url,
            alt: "",
            onerror: (event) => event.currentTarget.replaceWith(thumbnail(inspection ?? {})),
          })
        : thumbnail(inspection),
      h(
        "span",
        { class: "mark" },
        inspection
          ? icon(SYMBOLS[label], 16)
          : state === "failed"
            ? icon("warning", 22)
            : h("span", { class: state === "sending" ? "spinner" : "dot" }),
        inspection && h("span", {}, WORDS[label]),
      ),
      inspection?.truth &&
        h("span", { class: "truth-mark" }, icon(inspection.truth === "good" ? "thumbUp" : "thumbDown", 18)),
    );
    select(item);
  };
  const select = (item) => {
    const chosen = item === session.selected;
    cells.get(item)?.setAttribute("aria-selected", chosen);
    cells.get(item)?.setAttribute("tabindex", chosen ? 0 : -1);
  };

  const summarise = () => {
    const batch = session.items[0]?.batch;
    const mine = batch ? session.items.filter((item) => item.batch === batch) : [];
    const open = session.items.filter((item) => ["waiting", "sending"].includes(item.state)).length;
    const bad = session.items.filter((item) => item.state === "failed").length;
    const tally = Object.entries(WORDS).map(([label, word]) => [
      word.toLowerCase(),
      session.items.filter((item) => item.inspection?.label === label).length,
      label,
    ]);
    element.hidden = session.items.length === 0;
    bar.hidden = open === 0;
    if (mine.length) bar.set(mine.filter((item) => ["done", "failed"].includes(item.state)).length / mine.length);
    put(
      summary,
      h(
        "strong",
        {},
        open
          ? `${session.items.length - open} of ${session.items.length} inspected`
          : many(session.items.length, "picture"),
      ),
      tally
        .filter(([, n]) => n > 0)
        .map(([word, n, label]) => h("span", { class: `tally ${label}` }, icon(SYMBOLS[label], 20), `${n} ${word}`)),
      bad > 0 && h("span", { class: "tally failed" }, icon("warning", 20), `${bad} failed`),
      session.behind !== null &&
        h(
          "span",
          { class: "tally" },
          icon("pause", 20),
          session.behind ? `waiting here, ${many(session.behind, "newer part")}` : "waiting here",
        ),
    );
    newest.hidden = session.behind === null;
    stop.hidden = !session.items.some((item) => item.state === "waiting");
    again.hidden = bad === 0;
  };

  const all = () => {
    for (const [item, cell] of cells) {
      if (session.items.includes(item)) continue;
      cell.remove();
      cells.delete(item);
    }
    session.items.forEach((item, at) => {
      if (!cells.has(item)) draw(item);
      if (list.children[at] !== cells.get(item)) list.insertBefore(cells.get(item), list.children[at] ?? null);
    });
    summarise();
  };

  on(session, "list", all, signal);
  on(
    session,
    "item",
    ({ detail }) => {
      if (cells.has(detail)) draw(detail);
      summarise();
    },
    signal,
  );
  on(
    session,
    "select",
    () => {
      for (const item of cells.keys()) select(item);
      const cell = cells.get(session.selected);
      if (cell) list.scrollTo({ left: cell.offsetLeft - list.clientWidth / 2 + cell.clientWidth / 2 });
      summarise();
    },
    signal,
  );
  all();
  return element;
}
