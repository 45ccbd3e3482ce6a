// Products that are being taught, and what came of it.

import { h, put, memory } from "./dom.js";
import { icon } from "./icons.js";
import { busy, button, failed, linkButton, progress, waiting } from "./parts.js";
import * as api from "./api.js";
import { follow, keepJob, named, refresh, station } from "./station.js";
import { draft } from "./photo-set.js";
import { session } from "./session.js";
import { looseLimit } from "./strictness.js";
import { curveChart, scoreChart } from "./chart.js";
import { many, number, oneIn } from "./format.js";

const OPEN = ["queued", "running"];
const RECENT = 24 * 3600 * 1000; // milliseconds that a finished job stays on the page

/** Where a job came from, {set, name, from}: its photos can be taken up again, and unknown pictures be settled. */
export const origins = {
  keep: (job, origin) => memory.set("teachings", { ...memory.get("teachings", {}), [job.id]: origin }),
  of: (job) => memory.get("teachings", {})[job.id] ?? null,
};

const closed = () => memory.get("closed-jobs", []);
const close = (job) => memory.set("closed-jobs", [job.id, ...closed()].slice(0, 100));

export function jobCards(signal) {
  const cards = new Map(); // job id -> {card, state}
  const element = h("section", { class: "jobs", id: "jobs", "aria-label": "Teaching" });
  const draw = () => {
    const shown = station.jobs
      .filter(
        (job) =>
          OPEN.includes(job.state) ||
          (Date.now() - new Date(job.finished ?? job.created) < RECENT && !closed().includes(job.id)),
      )
      .slice(0, 6);
    for (const [id, { card }] of cards) {
      if (shown.some((job) => job.id === id)) continue;
      card.remove();
      cards.delete(id);
    }
    shown.forEach((job, at) => {
      let entry = cards.get(job.id);
      if (!entry || entry.state !== job.state) {
        const made = (OPEN.includes(job.state) ? running : ended)(job, draw);
        entry?.card.replaceWith(made.card);
        entry = { ...made, state: job.state };
        cards.set(job.id, entry);
      }
      entry.update?.(job);
      if (element.children[at] !== entry.card) element.insertBefore(entry.card, element.children[at] ?? null);
    });
    element.hidden = shown.length === 0;
  };
  follow(["jobs", "products"], draw, signal);
  return element;
}

const shell = (job, ...children) =>
  h("article", { class: `card job ${job.state}`, data: { test: "job", job: job.id, state: job.state } }, children);

function running(job) {
  const step = h("p", { class: "step", role: "status" });
  const bar = progress(`Teaching ${job.product}`, null);
  const cancel = button("close", "Cancel", {
    data: { test: "cancel-job" },
    onclick: () => busy(cancel, async () => keepJob(await api.cancelJob(job.id))),
  });
  const card = shell(
    job,
    h(
      "div",
      { class: "row spread" },
      h("h2", {}, h("span", { class: "spinner" }), `Teaching “${job.product}”`),
      cancel,
    ),
    bar,
    step,
  );
  const update = ({ state, step: text, done, total, attempts }) => {
    bar.set(state === "running" && total > 0 ? Math.min(1, done / total) : null);
    put(
      step,
      state === "queued" ? "Waiting for its turn" : text ? text[0].toUpperCase() + text.slice(1) : "Working …",
      total > 0 && state === "running" && ` · ${done} of ${total}`,
      attempts > 1 && ` · attempt ${attempts}`,
    );
  };
  return { card, update };
}

function ended(job, redraw) {
  const dismiss = button("close", "Close", {
    class: "quiet",
    data: { test: "close-job" },
    onclick: () => {
      close(job);
      redraw();
    },
  });
  if (job.state === "succeeded") return { card: success(job, dismiss) };
  const origin = origins.of(job);
  const back =
    origin?.set &&
    button("teach", "Back to its photos", {
      class: "primary",
      data: { test: "reopen-photos" },
      onclick: (event) =>
        busy(event.currentTarget, async () => {
          draft.rename(origin.name);
          draft.comeFrom(origin.from);
          await draft.load(origin.set);
          close(job);
          redraw();
          document.getElementById("teach-form")?.scrollIntoView({ block: "start" });
        }),
    });
  const problem =
    job.state === "cancelled"
      ? { message: `Teaching “${job.product}” was cancelled.`, remedy: "Nothing was changed." }
      : {
          message: `“${job.product}” could not be taught: ${job.problem ?? "the reason is not known."}`,
          remedy: job.remedy ?? "Try again.",
        };
  return { card: shell(job, failed(problem), h("div", { class: "row end" }, dismiss, back)) };
}

// Unknown pictures that were copied into the photo set are known now.
function settle(job) {
  const origin = origins.of(job);
  if (!origin?.from?.length) return;
  origins.keep(job, { ...origin, from: [] });
  api
    .dismiss(origin.from)
    .then(() => refresh("unknown"))
    .catch(() => origins.keep(job, origin));
}

function success(job, dismiss) {
  const charts = h("div", { class: "charts" }, waiting());
  const facts = h("p", {});
  const doubt = h("div", {});
  const inspectNow = linkButton("inspect", "Inspect now", "#/inspect", {
    class: "primary",
    data: { test: "inspect-now" },
    onclick: () => session.inspectAs(null),
  });
  const product = linkButton("products", "Its page", "#/products", { data: { test: "job-product" } });
  const card = shell(
    job,
    h(
      "div",
      { class: "row spread" },
      h("h2", {}, icon("good", 32), `“${job.product}” is ready`),
      h("div", { class: "row" }, dismiss, product, inspectNow),
    ),
    facts,
    doubt,
    charts,
  );
  const load = async () => {
    try {
      const found = named(job.product) ?? (await api.products()).items.find(({ name }) => name === job.product);
      if (!found) {
        put(charts, h("p", { class: "muted" }, "The product has another name by now, or was forgotten."));
        return;
      }
      product.href = `#/products/${encodeURIComponent(found.id)}`;
      put(
        facts,
        `Taught from ${many(found.images, "photo")} in ${number(found.seconds)} s. It may stop ${oneIn(found.false_alarm_rate)} good parts; nothing of the other products was changed.`,
      );
      const calibration = await api.calibration(found.id, found.false_alarm_rate, false);
      put(
        charts,
        scoreChart(calibration, {
          caption: "Scores of the photos that were held out, and the limit",
        }),
        curveChart(calibration),
      );
      put(doubt, looseLimit(calibration));
    } catch (error) {
      put(charts, failed(error, load));
    }
  };
  load();
  settle(job);
  return card;
}
