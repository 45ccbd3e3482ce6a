// Charts as SVG, drawn anew at every width: scores against the limit, and the limit for every false-alarm rate.

import { h, put, s } from "./dom.js";
import { number, oneIn } from "./format.js";

const BINS = 32;
const BEYOND = 2.5; // times the threshold: scores above it go into the last bin

/** A figure whose SVG is made by `draw(width)`; `figure.redraw(draw)` shows something else in it. */
function figure(caption, label, draw) {
  const place = h("div", { class: "plot" });
  const element = h("figure", { class: "chart" }, h("figcaption", {}, caption), place);
  let width = 0;
  const paint = () => width > 0 && put(place, draw(width));
  new ResizeObserver(([{ contentRect }]) => {
    if (Math.abs(contentRect.width - width) < 1) return;
    width = contentRect.width;
    paint();
  }).observe(place);
  element.redraw = (other) => {
    draw = other;
    paint();
  };
  place.setAttribute("role", "img");
  place.setAttribute("aria-label", label);
  return element;
}

const text = (x, y, words, props = {}) => s("text", { x, y, ...props }, words);

/** Histograms of held-out and recent scores on one scale, corrections as signs, limits as lines. */
export function scoreChart(calibration, { caption = "Scores and the limit", proposed = false } = {}) {
  const describe = (c) =>
    `Scores of ${c.held_out.length} held-out photos and ${c.recent.length} recent inspections; the limit is ${number(c.threshold)}${proposed ? `, proposed ${number(c.proposed_threshold)}` : ""}.`;
  const element = figure(caption, describe(calibration), scores(calibration, proposed));
  element.id = "score-chart";
  element.update = (other) => {
    element.redraw(scores(other, proposed));
    element.querySelector(".plot").setAttribute("aria-label", describe(other));
  };
  return element;
}

function scores(calibration, proposed) {
  const { threshold, proposed_threshold: next, held_out: held, confirmed_good: good, confirmed_bad: bad } = calibration;
  const recent = calibration.recent.map(({ score }) => score);
  const all = [...held, ...recent, ...good, ...bad, threshold, ...(proposed ? [next] : [])];
  const high = Math.max(threshold * 1.25, proposed ? next * 1.1 : 0, Math.min(Math.max(...all), threshold * BEYOND));
  const lowest = Math.min(...all);
  const low = lowest - 0.04 * (high - lowest);
  const over = Math.max(...all) > high;
  return (width) => {
    const [left, right] = [4, width - 10];
    const x = (score) => left + ((Math.min(score, high) - low) / (high - low || 1)) * (right - left);
    const rows = [
      ["Held out: good photos", held, "held", 90],
      ...(recent.length ? [["Inspected lately", recent, "recent", 90]] : []),
    ];
    const marks = good.length + bad.length > 0;
    let y = proposed ? 52 : 38;
    const parts = [];
    for (const [title, values, kind, height] of rows) {
      parts.push(histogram({ title: `${title} (${values.length})`, values, kind, low, high, x, y, height }));
      y += height + 26;
    }
    if (marks) {
      parts.push(text(left, y - 2, `You said good ○ (${good.length}), bad ✕ (${bad.length})`, { class: "row-title" }));
      y += 16;
      parts.push(good.map((score) => s("circle", { class: "mark good", cx: x(score), cy: y, r: 5 })));
      parts.push(
        bad.map((score) => s("path", { class: "mark bad", d: `M${x(score) - 5} ${y - 5}l10 10m0-10l-10 10` })),
      );
      y += 16;
    }
    const limit = proposed ? next : threshold;
    const line = (value, kind, words, row) => {
      const at = x(value);
      const end = at > width * 0.6;
      return [
        s("line", { class: `limit ${kind}`, x1: at, x2: at, y1: 14 * row + 4, y2: y }),
        text(at + (end ? -5 : 5), 14 * row + 13, words, {
          class: `limit-name ${kind}`,
          "text-anchor": end ? "end" : "start",
        }),
      ];
    };
    return s(
      "svg",
      { viewBox: `0 0 ${width} ${y + 22}`, width, height: y + 22 },
      s("rect", { class: "beyond", x: x(limit), y: 0, width: Math.max(0, right - x(limit)), height: y }),
      parts,
      s("line", { class: "axis", x1: left, x2: right, y1: y, y2: y }),
      text(x(lowest), y + 16, number(lowest)),
      text(right, y + 16, `${number(high)}${over ? " and more" : ""}`, { "text-anchor": "end" }),
      text((left + right) / 2, y + 16, "score", { "text-anchor": "middle" }),
      line(threshold, "now", `limit${proposed ? " now" : ""} ${number(threshold)}`, 0),
      proposed && next !== threshold && line(next, "next", `new limit ${number(next)}`, 1),
    );
  };
}

function histogram({ title, values, kind, low, high, x, y, height }) {
  const bins = new Array(BINS).fill(0);
  const size = (high - low) / BINS || 1;
  for (const value of values) bins[Math.min(BINS - 1, Math.max(0, Math.floor((value - low) / size)))] += 1;
  const most = Math.max(1, ...bins);
  const base = y + height;
  return [
    text(4, y - 2, title, { class: "row-title" }),
    bins.map((n, at) => {
      if (n === 0) return null;
      const [from, to] = [x(low + at * size), x(low + (at + 1) * size)];
      const tall = Math.max(2, ((height - 10) * n) / most);
      return s(
        "rect",
        { class: `bin ${kind}`, x: from + 0.5, y: base - tall, width: Math.max(1, to - from - 1), height: tall },
        s("title", {}, `${n} between ${number(low + at * size)} and ${number(low + (at + 1) * size)}`),
      );
    }),
    s("line", { class: "axis", x1: 4, x2: x(high), y1: base, y2: base }),
  ];
}

/** The limit for every false-alarm rate, with where it stands now. */
export function curveChart(calibration) {
  const element = figure("The limit for every false-alarm rate", "Calibration curve", curve(calibration));
  element.id = "curve-chart";
  element.update = (other) => element.redraw(curve(other));
  return element;
}

function curve({ curve: points, threshold, false_alarm_rate: rate, proposed_threshold: next }) {
  const sorted = [...points].sort((a, b) => a.false_alarm_rate - b.false_alarm_rate);
  return (width) => {
    if (sorted.length < 2) return h("p", { class: "muted" }, "There are too few held-out photos for a curve.");
    const [left, right, top, base] = [52, width - 12, 14, 190];
    const [from, to] = [sorted[0].false_alarm_rate, sorted.at(-1).false_alarm_rate].map(Math.log10);
    const limits = [...sorted.map((point) => point.threshold), threshold, next];
    const [low, high] = [Math.min(...limits), Math.max(...limits)];
    const x = (value) =>
      left + ((Math.log10(Math.min(10 ** to, Math.max(10 ** from, value))) - from) / (to - from)) * (right - left);
    const y = (value) => base - ((value - low) / (high - low || 1)) * (base - top);
    const ticks = [0.001, 0.01, 0.1].filter(
      (value) => Math.log10(value) >= from - 1e-9 && Math.log10(value) <= to + 1e-9,
    );
    return s(
      "svg",
      { viewBox: `0 0 ${width} 236`, width, height: 236 },
      [low, (low + high) / 2, high].map((value) => [
        s("line", { class: "grid", x1: left, x2: right, y1: y(value), y2: y(value) }),
        text(left - 6, y(value) + 4, number(value), { "text-anchor": "end" }),
      ]),
      ticks.map((value) => [
        s("line", { class: "grid", x1: x(value), x2: x(value), y1: top, y2: base }),
        text(x(value), base + 18, oneIn(value), { "text-anchor": value === 0.001 ? "start" : "middle" }),
      ]),
      text((left + right) / 2, base + 38, "good parts that may be stopped", { "text-anchor": "middle" }),
      s("polyline", {
        class: "curve",
        points: sorted.map((point) => `${x(point.false_alarm_rate)},${y(point.threshold)}`).join(" "),
      }),
      s(
        "circle",
        { class: "here", cx: x(rate), cy: y(next), r: 7 },
        s("title", {}, `${oneIn(rate)}: limit ${number(next)}`),
      ),
    );
  };
}
