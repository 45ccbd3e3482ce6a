// Small things that every page is made of: buttons, notices, dialogs, thumbnails.

import { h, fill } from "./dom.js";
import { icon } from "./icons.js";
import { pictureOf } from "./api.js";
import { SYMBOLS, WORDS, sentence } from "./format.js";

/** A button with an icon and words; `props.id` or `props.data.test` names it for the tests. */
export function button(symbol, words, props = {}) {
  const { class: kind = "", ...rest } = props;
  return h(
    "button",
    { type: "button", class: `button ${kind}`, ...rest },
    symbol && icon(symbol),
    h("span", {}, words),
  );
}

/** A link that looks like a button. */
export function linkButton(symbol, words, href, props = {}) {
  const { class: kind = "", ...rest } = props;
  return h("a", { class: `button ${kind}`, href, ...rest }, symbol && icon(symbol), h("span", {}, words));
}

/** A square button with an icon only. */
export function iconButton(symbol, label, props = {}) {
  const { class: kind = "", ...rest } = props;
  return h(
    "button",
    { type: "button", class: `button square ${kind}`, "aria-label": label, title: label, ...rest },
    icon(symbol),
  );
}

/** Keep a button busy while `work` runs; what it throws is shown as a toast. */
export async function busy(element, work) {
  if (element.getAttribute("aria-busy") === "true") return undefined;
  element.setAttribute("aria-busy", "true");
  element.disabled = true;
  try {
    return await work();
  } catch (error) {
    if (error.name === "AbortError") return undefined;
    complain(error);
    return undefined;
  } finally {
    element.removeAttribute("aria-busy");
    element.disabled = false;
  }
}

/** Something takes its time. */
export const waiting = (words = "Loading …") =>
  h("div", { class: "waiting", role: "status", data: { test: "waiting" } }, h("span", { class: "spinner" }), words);

/** Something failed: problem, remedy, and a way to try again. */
export function failed(error, retry) {
  return h(
    "div",
    { class: "notice bad", role: "alert", data: { test: "failed" } },
    icon("warning", 32),
    h("div", {}, h("strong", {}, error.message), h("p", {}, error.remedy ?? "Load the page again.")),
    retry && button("retry", "Try again", { onclick: retry, data: { test: "retry" } }),
  );
}

/** There is nothing yet: what this place is for, and what to do. */
export const empty = (symbol, title, text, ...actions) =>
  h(
    "div",
    { class: "empty", data: { test: "empty" } },
    icon(symbol, 72),
    h("h2", {}, title),
    h("p", {}, text),
    actions.length > 0 && h("div", { class: "row centre" }, actions),
  );

export const notice = (kind, ...children) =>
  h(
    "div",
    { class: `notice ${kind}` },
    icon(kind === "warn" ? "warning" : kind === "ok" ? "good" : "help", 28),
    h("div", {}, children),
  );

/** Say something for some seconds. */
export function toast(kind, text, detail = "") {
  const element = h(
    "div",
    { class: `toast ${kind}`, data: { test: `toast-${kind}` } },
    icon(kind === "bad" ? "warning" : "good"),
    h("div", {}, h("strong", {}, text), detail && h("p", {}, detail)),
    iconButton("close", "Close this message", { class: "quiet", onclick: () => element.remove() }),
  );
  document.getElementById("toasts").append(element);
  setTimeout(() => element.remove(), kind === "bad" ? 12_000 : 5_000);
}

export function complain(error) {
  if (!("remedy" in error)) console.error(error);
  toast("bad", error.message, error.remedy);
}

/** Tell those who cannot see it. */
export function announce(text) {
  document.getElementById("announcer").textContent = text;
}

/** Show a modal dialog; resolves with what `close(value)` was given, or null. `build(close)` returns the content. */
export function dialog(id, title, build, { wide = false } = {}) {
  return new Promise((resolve) => {
    let answer = null;
    const close = (value = null) => {
      answer = value;
      element.close();
    };
    const element = h(
      "dialog",
      { id, class: wide ? "wide" : "", "aria-labelledby": `${id}-title` },
      h(
        "div",
        { class: "dialog-head" },
        h("h2", { id: `${id}-title` }, title),
        iconButton("close", "Close", { class: "quiet", id: `${id}-close`, onclick: () => close() }),
      ),
    );
    fill(element, h("div", { class: "dialog-body" }, build(close)));
    element.addEventListener("close", () => {
      element.remove();
      resolve(answer);
    });
    element.addEventListener("click", (event) => event.target === element && close());
    document.body.append(element);
    element.showModal();
  });
}

/** Ask before something that matters; true when the person agreed. */
export const confirmed = (id, title, text, words, { kind = "primary", symbol = null } = {}) =>
  dialog(id, title, (close) => [
    h("p", {}, text),
    h(
      "div",
      { class: "row end" },
      button(null, "Cancel", { id: `${id}-cancel`, onclick: () => close(false) }),
      button(symbol, words, { id: `${id}-confirm`, class: kind, onclick: () => close(true) }),
    ),
  ]);

/** A verdict as a small sign: symbol, word and colour. */
export const badge = (label) =>
  h("span", { class: `badge ${label}`, data: { label } }, icon(SYMBOLS[label], 20), WORDS[label]);

/** An inspection's picture, small; a sign where retention has removed it. */
export function thumbnail(inspection, width = 160) {
  if (!inspection.has_picture) return h("span", { class: "no-picture" }, icon("archive", 28), "picture removed");
  const image = h("img", {
    src: pictureOf(inspection.id, width),
    alt: inspection.label ? sentence(inspection) : "",
    loading: "lazy",
    decoding: "async",
  });
  image.addEventListener("error", () =>
    image.replaceWith(h("span", { class: "no-picture" }, icon("archive", 28), "no picture")),
  );
  return image;
}

/** A bar of progress from 0 to 1; null while that is not known. */
export function progress(label, value, props = {}) {
  const bar = h(
    "div",
    { class: "bar", role: "progressbar", "aria-label": label, "aria-valuemin": 0, "aria-valuemax": 100, ...props },
    h("div"),
  );
  bar.set = (now) => {
    bar.classList.toggle("endless", now === null);
    if (now === null) bar.removeAttribute("aria-valuenow");
    else bar.setAttribute("aria-valuenow", Math.round(100 * now));
    bar.firstChild.style.width = now === null ? "" : `${100 * now}%`;
  };
  bar.set(value);
  return bar;
}
