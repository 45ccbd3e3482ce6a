// The verdict, to be read from three metres: colour, symbol and word; then the score on its scale, then what
// a human can say to it.

import { h, put } from "./dom.js";
import { icon } from "./icons.js";
import { announce, busy, button } from "./parts.js";
import * as api from "./api.js";
import { SYMBOLS, WORDS, number, ratio, sentence, times, when } from "./format.js";
import { active } from "./station.js";
import { teachUnknown } from "./teach-unknown.js";

const SOURCES = { page: "this page", api: "another program", watch: "the line" };

/**
 * The panel beside the viewer.
 * @param changed called with the inspection after a human has judged it
 * @param again called with a product to inspect the same picture as; null where that makes no sense
 */
export class VerdictPanel {
  constructor({ changed, again = null }) {
    Object.assign(this, { changed, again, shown: null });
    this.element = h("section", { class: "verdict-panel", "aria-label": "Verdict", id: "verdict-panel" });
  }

  show(inspection) {
    const open = this.element.querySelector("details")?.open ?? false;
    this.shown = inspection;
    put(
      this.element,
      sign(inspection),
      inspection.label === "unknown" ? this.unknownActions(inspection) : [gauge(inspection), this.truth(inspection)],
      details(inspection, open),
    );
  }

  truth(inspection) {
    const choice = (truth, symbol, words, key) =>
      button(symbol, words, {
        id: `truth-${truth}`,
        class: `truth ${truth}`,
        "aria-pressed": String(inspection.truth === truth),
        "aria-keyshortcuts": key,
        onclick: (event) => busy(event.currentTarget, () => this.judge(truth)),
      });
    return h(
      "div",
      { class: "judge", role: "group", "aria-label": "What the part really was" },
      h(
        "div",
        { class: "truths" },
        choice("good", "thumbUp", "This was good", "g"),
        choice("bad", "thumbDown", "This was bad", "b"),
      ),
      h("p", { class: "consequence", id: "consequence" }, consequence(inspection)),
    );
  }

  /** Say what the part was; saying the same again takes it back. */
  async judge(truth) {
    const inspection = this.shown;
    if (!inspection || inspection.label === "unknown") return;
    const answer = await api.setTruth(inspection.id, inspection.truth === truth ? null : truth);
    if (this.shown?.id === answer.id) this.show(answer);
    announce(answer.truth ? consequence(answer) : "Your correction was taken back.");
    this.changed?.(answer);
  }

  unknownActions(inspection) {
    const others = active().filter((product) => product.name !== inspection.nearest);
    const nearest = active().find((product) => product.name === inspection.nearest);
    const as = (product) => this.again(inspection, product);
    return h(
      "div",
      { class: "judge" },
      h(
        "p",
        {},
        inspection.nearest
          ? [
              "Closest product: ",
              h("strong", {}, inspection.nearest),
              inspection.distance && `, ${times(inspection.distance)} as far away as it may be.`,
            ]
          : "It is like no product that this station knows.",
      ),
      !inspection.settled &&
        inspection.has_picture &&
        button("teach", "Teach this as a new product", {
          class: "primary wide",
          id: "teach-this",
          onclick: (event) => busy(event.currentTarget, () => teachUnknown(inspection)),
        }),
      this.again &&
        inspection.has_picture &&
        nearest &&
        button("inspect", `Inspect as ${nearest.name} anyway`, {
          class: "wide",
          id: "inspect-as-nearest",
          onclick: (event) => busy(event.currentTarget, () => as(nearest)),
        }),
      this.again &&
        inspection.has_picture &&
        others.length > 0 &&
        h(
          "label",
          { class: "field" },
          nearest ? "or as another product" : "Inspect it as",
          h(
            "select",
            { id: "inspect-as", onchange: (event) => as(others[event.currentTarget.selectedIndex - 1]) },
            h("option", { value: "" }, "Choose …"),
            others.map((product) => h("option", {}, product.name)),
          ),
        ),
    );
  }
}

/** The big sign itself. */
export function sign(inspection) {
  const value = ratio(inspection);
  return h(
    "div",
    {
      class: `sign ${inspection.label}`,
      id: "sign",
      role: "img",
      "aria-label": sentence(inspection),
      data: { label: inspection.label },
    },
    icon(SYMBOLS[inspection.label], 128),
    h(
      "div",
      {},
      h("div", { class: "word", id: "verdict-word" }, WORDS[inspection.label]),
      h("div", { class: "product", id: "verdict-product" }, inspection.product ?? "no known product"),
      value !== null && h("div", { class: "times" }, `${times(value)} the limit`),
    ),
  );
}

/** The score on a scale where the threshold stands in the middle. */
function gauge(inspection) {
  const value = ratio(inspection);
  if (value === null) return null;
  const at = Math.max(0, Math.min(100, 50 * value));
  return h(
    "div",
    {
      class: "gauge",
      id: "gauge",
      role: "meter",
      "aria-label": "Score, as a share of the limit",
      "aria-valuemin": 0,
      "aria-valuemax": 200,
      "aria-valuenow": Math.round(Math.min(200, 100 * value)),
      "aria-valuetext": `${times(value)} the limit`,
    },
    h(
      "div",
      { class: "track" },
      h("div", { class: `filled ${inspection.label}`, style: { width: `${at}%` } }),
      h("div", { class: "limit" }),
      h("div", { class: `needle ${inspection.label}`, style: { left: `${at}%` } }),
    ),
    h(
      "div",
      { class: "scale" },
      h("span", {}, "0"),
      h("span", {}, `limit ${number(inspection.threshold)}`),
      h("span", {}, value > 2 ? "beyond" : "2×"),
    ),
    h("div", { class: "score" }, "Score ", h("strong", { id: "score" }, number(inspection.score))),
  );
}

function consequence({ label, truth }) {
  if (!truth) return "Right or wrong? The limit can be set by what you say.";
  if (truth === "good") return label === "anomalous" ? "Noted as a false alarm." : "Confirmed: a good part.";
  return label === "normal" ? "Noted as a missed defect." : "Confirmed: a bad part.";
}

function details(inspection, open) {
  const total = Object.values(inspection.timings_ms ?? {}).reduce((sum, ms) => sum + ms, 0);
  const rows = {
    Time: when(inspection.time),
    Part: inspection.reference,
    From: SOURCES[inspection.source] ?? inspection.source,
    Picture: `${inspection.width} × ${inspection.height} pixels`,
    "Closest product":
      inspection.nearest && inspection.distance !== null
        ? `${inspection.nearest} (${times(inspection.distance)} of the distance allowed)`
        : null,
    "Time taken":
      total > 0
        ? `${number(total)} ms (${Object.entries(inspection.timings_ms)
            .map(([stage, ms]) => `${stage} ${number(ms)}`)
            .join(", ")})`
        : null,
    Number: inspection.id,
  };
  return h(
    "details",
    { class: "facts", open },
    h("summary", { id: "details-summary" }, "Details"),
    h(
      "dl",
      {},
      Object.entries(rows)
        .filter(([, value]) => value)
        .map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]),
    ),
    h(
      "a",
      {
        class: "button",
        id: "original",
        href: api.address(`inspections/${inspection.id}/picture`, { original: true }),
        download: `${inspection.id}`,
        hidden: !inspection.has_picture,
      },
      icon("download"),
      h("span", {}, "Original picture"),
    ),
  );
}
