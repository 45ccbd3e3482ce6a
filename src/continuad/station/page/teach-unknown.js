// From unknown pictures to a product: name it, and it is taught.

import { h } from "./dom.js";
import * as api from "./api.js";
import { button, busy, dialog, thumbnail, toast } from "./parts.js";
import { many } from "./format.js";
import { keepJob, refresh, station } from "./station.js";

const SHOWN = 12;

/** Teach the product of one unknown picture, with all that the station has seen of its kind. */
export async function teachUnknown(inspection) {
  const { groups } = await api.unknown();
  const group = groups.find(({ inspections }) => inspections.includes(inspection.id));
  return teachGroup(group?.inspections ?? [inspection.id]);
}

/** Ask for the name and start; with too few pictures, go on to the page where photos can be added. */
export async function teachGroup(ids) {
  const least = station.status?.minimum_photos ?? 6;
  const enough = ids.length >= least;
  const more = () => {
    location.hash = `#/teach?inspections=${ids.join(",")}`;
  };
  if (!enough) return more();
  const name = h("input", {
    id: "new-product-name",
    name: "name",
    maxlength: 80,
    required: true,
    autocomplete: "off",
    autofocus: true,
    placeholder: "for example: cap, blue",
  });
  const job = await dialog("teach-group", "Teach as a new product", (close) => {
    const start = button("teach", "Teach", { id: "teach-group-start", class: "primary", type: "submit" });
    return h(
      "form",
      {
        onsubmit: (event) => {
          event.preventDefault();
          busy(start, async () => close(await api.teach({ name: name.value.trim(), inspections: ids })));
        },
      },
      h("p", {}, `${many(ids.length, "picture")} of the same kind. Make sure that all show good parts.`),
      h(
        "div",
        { class: "mosaic" },
        ids.slice(0, SHOWN).map((id) => thumbnail({ id, has_picture: true })),
        ids.length > SHOWN && h("span", { class: "more" }, `+${ids.length - SHOWN}`),
      ),
      h("label", { class: "field" }, "Name of the product", name),
      h(
        "div",
        { class: "row end" },
        button("edit", "Check and add photos first", {
          id: "teach-group-check",
          onclick: () => {
            close();
            more();
          },
        }),
        start,
      ),
    );
  });
  if (!job) return;
  keepJob(job);
  refresh("unknown").catch(() => {});
  toast("ok", `“${job.product}” is being taught.`, "Inspection goes on meanwhile.");
  location.hash = "#/teach";
}
