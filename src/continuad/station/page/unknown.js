// Unknown: pictures of no product, grouped by what looks alike.

import { h, put, debounce } from "./dom.js";
import { icon } from "./icons.js";
import { busy, button, confirmed, empty, failed, thumbnail, toast, waiting } from "./parts.js";
import * as api from "./api.js";
import { events } from "./events.js";
import { refresh, station } from "./station.js";
import { openItem } from "./item.js";
import { teachGroup } from "./teach-unknown.js";
import { many } from "./format.js";

const SHOWN = 12;

export function unknownPage({ root, signal }) {
  const list = h("div", { class: "groups", id: "unknown-groups" });
  const total = h("p", { class: "muted", id: "unknown-total" });
  const fresh = button("retry", "More have come: group again", {
    id: "unknown-refresh",
    hidden: true,
    onclick: () => load(),
  });
  put(
    root,
    h("div", { class: "page" }, h("h1", {}, "Unknown pictures"), h("div", { class: "row spread" }, total, fresh), list),
  );
  const load = async () => {
    fresh.hidden = true;
    if (!list.firstChild) put(list, waiting("Looking for what is alike …"));
    try {
      const found = await api.unknown(signal);
      total.textContent = found.total
        ? `${many(found.total, "picture")} of no known product, in ${many(found.groups.length, "group")} of what looks alike.`
        : "";
      if (found.total === 0)
        put(
          list,
          empty(
            "unknown",
            "Nothing unknown",
            "Pictures of products that the station does not know are gathered here. You can then teach them in two steps.",
          ),
        );
      else
        put(
          list,
          found.groups.map((group) => card(group, load)),
        );
    } catch (error) {
      if (error.name !== "AbortError") put(list, failed(error, load));
    }
  };
  put(list, waiting("Looking for what is alike …"));
  load();
  // Groups do not move under a finger: new pictures only offer to group again.
  events.addEventListener(
    "inspection",
    debounce(300, ({ detail }) => {
      if (detail.label === "unknown" && !signal.aborted) fresh.hidden = false;
    }),
    { signal },
  );
  events.addEventListener("open", () => list.querySelector("[data-test=failed]") && load(), { signal });
}

function card({ size, nearest, inspections: ids }, reload) {
  const least = station.status?.minimum_photos ?? 6;
  const dismiss = button("trash", "Not a product: dismiss", {
    data: { test: "dismiss" },
    onclick: async () => {
      if (
        !(await confirmed(
          "dismiss-dialog",
          "Dismiss",
          `${many(size, "picture")} will not be shown here any more. They stay in the history.`,
          "Dismiss",
          { symbol: "trash" },
        ))
      )
        return;
      await busy(dismiss, async () => {
        await api.dismiss(ids);
        toast("ok", `${many(size, "picture")} dismissed.`);
        refresh("unknown").catch(() => {});
        await reload();
      });
    },
  });
  const items = ids.map((id) => ({ id }));
  return h(
    "article",
    { class: "card group", data: { test: "group", size } },
    h(
      "div",
      { class: "row spread" },
      h("h2", {}, many(size, "picture")),
      h("span", { class: "muted" }, nearest ? `closest product: ${nearest}` : "like no product that the station knows"),
    ),
    h(
      "div",
      { class: "mosaic" },
      items.slice(0, SHOWN).map(({ id }) =>
        h(
          "button",
          {
            type: "button",
            class: "tile",
            "aria-label": `Open picture ${id}`,
            data: { test: "unknown-picture", id },
            onclick: () => openItem(id),
          },
          thumbnail({ id, has_picture: true }),
        ),
      ),
      size > SHOWN && h("span", { class: "more" }, `+${size - SHOWN}`),
    ),
    h(
      "div",
      { class: "row end" },
      dismiss,
      button("teach", size < least ? `Teach as new product (${least - size} more needed)` : "Teach as new product", {
        class: "primary",
        data: { test: "teach-group" },
        onclick: (event) => busy(event.currentTarget, () => teachGroup(ids)),
      }),
    ),
    size < least &&
      h(
        "p",
        { class: "muted hint" },
        icon("help", 20),
        `A product needs ${least} photos at least; you can add more in the next step.`,
      ),
  );
}
