// How many good parts may be stopped, in words.

import { h } from "./dom.js";
import { oneIn } from "./format.js";

const CHOICES = [
  [0.001, "hardly any; small defects may pass"],
  [0.01, "a good start"],
  [0.02, "stricter"],
  [0.05, "strict: also small defects, more to check by hand"],
];

/** Large radio buttons; `chosen.value` is the rate. */
export function rateChoice(value = 0.01) {
  const chosen = { value };
  const element = h(
    "div",
    { class: "choices", role: "radiogroup", "aria-label": "How many good parts may be stopped" },
    CHOICES.map(([rate, words]) =>
      h(
        "label",
        { class: "choice" },
        h("input", {
          type: "radio",
          name: "rate",
          value: String(rate),
          id: `rate-${Math.round(1 / rate)}`,
          checked: rate === value,
          onchange: () => (chosen.value = rate),
        }),
        h("span", {}, h("strong", {}, oneIn(rate)), ` good parts may be stopped`, h("small", {}, words)),
      ),
    ),
  );
  return { element, chosen };
}
