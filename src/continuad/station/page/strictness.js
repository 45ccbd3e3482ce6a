// How strict a product is: a slider whose effect is shown before it counts.

import { h, put, debounce } from "./dom.js";
import { busy, button, failed, notice, toast, waiting } from "./parts.js";
import * as api from "./api.js";
import { curveChart, scoreChart } from "./chart.js";
import { RATES, many, number, oneIn, times } from "./format.js";

/** The stops of the slider: strict at the right, with the product's own rate among them. */
const stops = (rate) => [...new Set([...RATES, rate])].sort((a, b) => a - b);

export function strictness(product, { signal, applied }) {
  const rates = stops(product.false_alarm_rate);
  let shown = null; // what the calibration says about the choice
  let asking = null;
  const slider = h("input", {
    type: "range",
    id: "rate-slider",
    min: 0,
    max: rates.length - 1,
    step: 1,
    value: rates.indexOf(product.false_alarm_rate),
    "aria-label": "Good parts that may be stopped",
    oninput: () => chosen(),
  });
  const words = h("output", { class: "rate-words", id: "rate-words" });
  const corrections = h("input", { type: "checkbox", id: "use-corrections", onchange: () => chosen() });
  const effect = h("div", { class: "effect", id: "effect", role: "status" });
  const charts = h("div", { class: "charts" }, waiting());
  const apply = button("good", "Apply", {
    id: "apply",
    class: "primary",
    disabled: true,
    onclick: () =>
      busy(apply, async () => {
        const answer = await api.recalibrate(product.id, rate(), corrections.checked);
        toast("ok", `The limit of “${product.name}” is now ${number(answer.threshold)}.`);
        await applied(answer);
      }).then(ready),
  });
  const reset = button("retry", "As it is now", {
    id: "reset-rate",
    class: "quiet",
    onclick: () => {
      slider.value = rates.indexOf(product.false_alarm_rate);
      corrections.checked = false;
      chosen();
    },
  });
  const rate = () => rates[slider.valueAsNumber];
  const changed = () => rate() !== product.false_alarm_rate || corrections.checked;
  const ready = () => {
    apply.disabled = !(shown && changed());
    reset.hidden = !changed();
  };
  let scores = null;
  let curve = null;

  const ask = debounce(120, async () => {
    asking?.abort();
    asking = new AbortController();
    try {
      shown = await api.calibration(product.id, rate(), corrections.checked, AbortSignal.any([asking.signal, signal]));
      if (scores === null) {
        scores = scoreChart(shown, { caption: "Scores and the limit", proposed: true });
        curve = curveChart(shown);
        put(charts, scores, curve);
      } else {
        scores.update(shown);
        curve.update(shown);
      }
      put(effect, changed() ? consequences(shown) : [asItIs(shown), looseLimit(shown)]);
      ready();
    } catch (error) {
      if (error.name === "AbortError" || signal.aborted) return;
      put(effect, failed(error, chosen));
    }
  });
  const chosen = () => {
    shown = null;
    words.textContent = `${oneIn(rate())} good parts may be stopped`;
    slider.setAttribute("aria-valuetext", words.textContent);
    slider.style.setProperty("--at", `${(100 * slider.valueAsNumber) / (rates.length - 1)}%`);
    ready();
    ask();
  };
  chosen();
  return h(
    "section",
    { class: "card strictness", "aria-label": "How strict" },
    h("h2", {}, "How strict?"),
    h(
      "div",
      { class: "slider-row" },
      h("span", {}, "fewer false alarms"),
      slider,
      h("span", {}, "fewer missed defects"),
    ),
    words,
    h("label", { class: "tick" }, corrections, "Use what people said (“this was good / bad”) as well"),
    effect,
    h("div", { class: "row end" }, reset, apply),
    charts,
  );
}

const LOOSE = 3; // times the worst held-out good photo

/** A warning where the limit is an extrapolation far beyond what was seen of good parts. */
export function looseLimit({ threshold, held_out: held }) {
  const worst = Math.max(...held);
  if (held.length === 0 || !(worst > 0) || threshold < LOOSE * worst) return null;
  return h(
    "div",
    { data: { test: "loose-limit" } },
    notice(
      "warn",
      h(
        "strong",
        {},
        `The limit is ${times(threshold / worst)} the worst good photo that was held out (${held.length} were).`,
      ),
      h("p", {}, "Defects may pass. Teach it again with more photos, or choose a stricter limit."),
    ),
  );
}

const asItIs = ({ recent, alarms_now: alarms, confirmed_bad: bad, missed_now: missed }) => [
  h(
    "p",
    {},
    recent.length
      ? `Of the last ${many(recent.length, "part")}, ${alarms} ${alarms === 1 ? "was" : "were"} above the limit.`
      : "Nothing was inspected yet with what it knows now.",
  ),
  bad.length > 0 &&
    h("p", {}, `Of ${many(bad.length, "part")} that you said were bad, ${missed} ${missed === 1 ? "passes" : "pass"}.`),
];

const consequences = ({
  recent,
  alarms_now,
  alarms_then,
  confirmed_bad: bad,
  missed_now,
  missed_then,
  threshold,
  proposed_threshold: next,
}) => [
  h(
    "div",
    { class: "before-after" },
    change(`Stopped, of the last ${recent.length}`, alarms_now, alarms_then, "alarms"),
    bad.length > 0 && change(`Missed, of ${bad.length} known bad`, missed_now, missed_then, "missed"),
    change("Limit", number(threshold), number(next), "limit"),
  ),
  h("p", { class: "muted" }, "Nothing has changed yet. Apply it to make it count."),
];

const change = (title, now, then, name) =>
  h(
    "div",
    { class: "change", data: { test: `effect-${name}` } },
    h("span", {}, title),
    h("strong", {}, h("s", {}, now), " → ", h("b", {}, then)),
  );
