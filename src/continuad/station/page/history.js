// History: every verdict that was given, to be filtered, opened, corrected and taken along.

import { h, put, on, atEnd } from "./dom.js";
import { icon } from "./icons.js";
import { badge, button, empty, failed, linkButton, notice, thumbnail, waiting } from "./parts.js";
import * as api from "./api.js";
import { events } from "./events.js";
import { follow, station } from "./station.js";
import { openItem } from "./item.js";
import { auditLog } from "./audit.js";
import { bytes, count, many, ratio, times, when } from "./format.js";

const HOUR = 3600_000;
const CHOICES = {
  label: [
    ["", "All"],
    ["normal", "Good"],
    ["anomalous", "Defect"],
    ["unknown", "Unknown"],
  ],
  truth: [
    ["", "All"],
    ["any", "Corrected"],
    ["none", "Not corrected"],
    ["good", "Said good"],
    ["bad", "Said bad"],
  ],
  time: [
    ["", "Any time"],
    ["1", "Last hour"],
    ["8", "Last 8 hours"],
    ["24", "Last 24 hours"],
    ["168", "Last 7 days"],
    ["720", "Last 30 days"],
    ["own", "From … to …"],
  ],
};

export function historyPage({ root, signal, path, query }) {
  const rows = h("div", { class: "rows", id: "history-rows", role: "list" });
  const foot = h("div", { class: "history-foot" });
  const fresh = button("up", "", { id: "history-fresh", class: "primary", hidden: true, onclick: () => load() });
  const items = [];
  let next = null;
  let run = new AbortController();
  let newer = 0;

  const select = (name, title, choices) =>
    h(
      "label",
      { class: "field" },
      title,
      h(
        "select",
        { id: `filter-${name}`, onchange: () => load() },
        choices.map(([value, words]) => h("option", { value, selected: query.get(name) === value }, words)),
      ),
    );
  const product = h("select", { id: "filter-product", onchange: () => load() });
  const [label, truth, time] = [
    select("label", "Verdict", CHOICES.label),
    select("truth", "Correction", CHOICES.truth),
    select("time", "Time", CHOICES.time),
  ];
  const since = h("input", { type: "datetime-local", id: "filter-since", onchange: () => load() });
  const until = h("input", { type: "datetime-local", id: "filter-until", onchange: () => load() });
  const own = h(
    "div",
    { class: "row own-time", hidden: true },
    h("label", { class: "field" }, "From", since),
    h("label", { class: "field" }, "To", until),
  );
  const downloads = h("div", { class: "row" });
  const disk = h("div", { class: "disk" });

  const value = (field) => field.querySelector("select").value;
  const filter = () => {
    const iso = (input) => (input.value ? new Date(input.value).toISOString() : null);
    const hours = value(time);
    return {
      product: product.value,
      label: value(label),
      truth: value(truth),
      since: hours === "own" ? iso(since) : hours ? new Date(Date.now() - Number(hours) * HOUR).toISOString() : null,
      until: hours === "own" ? iso(until) : null,
    };
  };

  async function load() {
    run.abort();
    run = new AbortController();
    own.hidden = value(time) !== "own";
    items.length = 0;
    newer = 0;
    fresh.hidden = true;
    put(rows);
    put(
      downloads,
      [
        ["csv", "CSV"],
        ["parquet", "Parquet"],
        ["zip", "ZIP with pictures"],
      ].map(([suffix, words]) =>
        linkButton("download", words, api.historyFile(suffix, filter()), { id: `download-${suffix}`, download: "" }),
      ),
    );
    await more(true);
  }

  async function more(first = false) {
    const { signal: mine } = run;
    put(foot, waiting());
    loading = true;
    try {
      const page = await api.inspections(
        { ...filter(), before: first ? null : next, limit: 50 },
        AbortSignal.any([mine, signal]),
      );
      next = page.next;
      const start = items.length;
      items.push(...page.items);
      rows.append(...page.items.map((item, at) => row(item, start + at)));
      if (items.length === 0)
        put(
          foot,
          empty(
            "history",
            "Nothing here",
            Object.values(filter()).some(Boolean)
              ? "No inspection fits what was chosen above."
              : "Inspected pictures appear here, with their verdicts.",
          ),
        );
      else
        put(
          foot,
          next === null
            ? h("p", { class: "muted centre-text" }, `That is all: ${many(items.length, "inspection")}.`)
            : button("retry", "More", { id: "history-more", onclick: () => more() }),
        );
    } catch (error) {
      if (error.name === "AbortError") return;
      put(
        foot,
        failed(error, () => more(first)),
      );
      return;
    } finally {
      loading = false;
    }
    if (next !== null && foot.getBoundingClientRect().top < window.innerHeight + 600) more();
  }
  let loading = false;
  const nearEnd = new IntersectionObserver(([entry]) => entry.isIntersecting && !loading && next !== null && more(), {
    rootMargin: "600px",
  });
  nearEnd.observe(foot);
  atEnd(signal, () => nearEnd.disconnect());

  const row = (item) =>
    h(
      "div",
      { role: "listitem" },
      h(
        "button",
        {
          type: "button",
          class: "row-item",
          data: { test: "history-row", id: item.id, label: item.label },
          onclick: () => open(item.id),
        },
        h("span", { class: "row-picture" }, thumbnail(item)),
        badge(item.label),
        h(
          "span",
          { class: "row-words" },
          h("strong", {}, item.product ?? (item.nearest ? `closest: ${item.nearest}` : "no known product")),
          h("small", {}, [when(item.time), item.reference].filter(Boolean).join(" · ")),
        ),
        h("span", { class: "row-ratio" }, ratio(item) === null ? "" : times(ratio(item))),
        h(
          "span",
          { class: "row-truth" },
          item.truth && [icon(item.truth === "good" ? "thumbUp" : "thumbDown", 20), `said ${item.truth}`],
        ),
      ),
    );

  const replace = (item) => {
    const at = items.findIndex(({ id }) => id === item.id);
    if (at < 0) return false;
    items[at] = item;
    rows.children[at].replaceWith(row(item));
    return true;
  };
  const open = (id) =>
    openItem(id, {
      items: () => items,
      changed: replace,
      more: async () => {
        if (next !== null && !loading) await more();
      },
    });

  follow(
    ["products"],
    () => {
      const chosen = product.options.length ? product.value : (query.get("product") ?? "");
      const names = new Set([...(station.products ?? []).map(({ name }) => name), chosen].filter(Boolean));
      put(
        product,
        h("option", { value: "" }, "All"),
        [...names].map((name) => h("option", { value: name, selected: name === chosen }, name)),
      );
    },
    signal,
  );
  follow(
    ["status"],
    () => {
      const storage = station.status?.storage;
      if (!storage) return;
      const share = storage.budget ? Math.min(1, storage.bytes / storage.budget) : 0;
      put(
        disk,
        h(
          "div",
          { class: "row spread" },
          h(
            "strong",
            {},
            icon("disk"),
            ` ${count(storage.pictures)} pictures, ${bytes(storage.bytes)} of ${bytes(storage.budget)}`,
          ),
          h("span", { class: "muted" }, `${bytes(storage.free)} free on the disk`),
        ),
        h(
          "div",
          {
            class: "bar",
            role: "meter",
            "aria-label": "Room used by pictures",
            "aria-valuemin": 0,
            "aria-valuemax": 100,
            "aria-valuenow": Math.round(100 * share),
          },
          h("div", { style: { width: `${100 * share}%` } }),
        ),
        station.status.deliveries.map(({ target, waiting: held, delivered, dropped, problem }) =>
          h(
            "p",
            { data: { test: "delivery" } },
            h("strong", {}, `Sent to ${target}: `),
            `${count(delivered)}, ${count(held)} waiting`,
            dropped > 0 && `, ${count(dropped)} dropped`,
            problem && notice("warn", problem),
          ),
        ),
        h(
          "p",
          { class: "muted", id: "retention-rule" },
          storage.rule,
          storage.removed > 0 && ` ${many(storage.removed, "picture")} removed so far.`,
        ),
      );
    },
    signal,
  );
  on(
    events,
    "inspection",
    ({ detail }) => {
      if (replace(detail) || loading || detail.id <= (items[0]?.id ?? 0)) return;
      newer += 1;
      fresh.hidden = false;
      fresh.querySelector("span").textContent = `${many(newer, "newer inspection")}: show`;
    },
    signal,
  );
  on(events, "open", () => items.length === 0 && load(), signal);

  put(
    root,
    h(
      "div",
      { class: "page" },
      h("h1", {}, "History"),
      h(
        "div",
        { class: "filters", role: "search" },
        h("label", { class: "field" }, "Product", product),
        label,
        truth,
        time,
        own,
      ),
      h("div", { class: "row spread" }, downloads, fresh),
      rows,
      foot,
      h("section", { class: "card" }, h("h2", {}, "Pictures on the disk"), disk),
      auditLog(signal),
    ),
  );
  load();
  if (path[1]) open(Number(path[1]));
}
