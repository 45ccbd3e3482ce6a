// The audit log: who changed what.

import { h, put } from "./dom.js";
import { icon } from "./icons.js";
import { button, failed, waiting } from "./parts.js";
import * as api from "./api.js";
import { number, when } from "./format.js";

export function auditLog(signal) {
  const body = h("tbody", {});
  const foot = h("div", {});
  let next = null;
  let begun = false;
  const load = async () => {
    put(foot, waiting());
    try {
      const page = await api.audit(next, signal);
      next = page.next;
      body.append(
        ...page.items.map(({ time, actor, action, subject, detail }) =>
          h(
            "tr",
            {},
            h("td", {}, when(time)),
            h("td", {}, actor),
            h("td", {}, action),
            h("td", {}, subject),
            h(
              "td",
              {},
              Object.entries(detail ?? {}).map(([key, value]) =>
                h("span", { class: "pair" }, `${key.replaceAll("_", " ")}: ${plain(value)}`),
              ),
            ),
          ),
        ),
      );
      put(
        foot,
        next !== null && button("retry", "More", { id: "audit-more", onclick: load }),
        !body.firstChild && h("p", { class: "muted" }, "Nothing was changed yet."),
      );
    } catch (error) {
      if (error.name !== "AbortError") put(foot, failed(error, load));
    }
  };
  return h(
    "details",
    {
      class: "card audit",
      id: "audit",
      ontoggle: (event) => {
        if (!event.currentTarget.open || begun) return;
        begun = true;
        load();
      },
    },
    h("summary", { id: "audit-summary" }, icon("log"), "Who changed what"),
    h(
      "div",
      { class: "scroll" },
      h(
        "table",
        {},
        h(
          "thead",
          {},
          h(
            "tr",
            {},
            ["Time", "Who", "What", "Of", "Details"].map((title) => h("th", { scope: "col" }, title)),
          ),
        ),
        body,
      ),
    ),
    foot,
  );
}

/** A detail in words; a pair of values is what was and what is. */
function plain(value) {
  if (Array.isArray(value)) return value.map(plain).join(value.length === 2 ? " → " : ", ");
  if (typeof value === "number") return number(value);
  return value !== null && typeof value === "object" ? JSON.stringify(value) : String(value);
}
