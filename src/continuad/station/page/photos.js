// The photos of a set, with what is wrong with them and the button that removes them.

import { h, put } from "./dom.js";
import { icon } from "./icons.js";
import { busy, button, confirmed, iconButton, notice, progress } from "./parts.js";
import * as api from "./api.js";
import { draft } from "./photo-set.js";
import { many } from "./format.js";

export function photoGrid(signal) {
  const cells = new Map(); // photo id -> {cell, said}
  const head = h("div", { class: "photos-head" });
  const grid = h("div", { class: "photos", id: "photos", role: "list", "aria-label": "Photos" });
  const sending = progress("Photos sent", 0);
  const element = h("div", {}, sending, head, grid);
  let onlyWarned = false;

  const cellOf = (photo) => {
    const said = JSON.stringify(photo.warnings);
    const known = cells.get(photo.id);
    if (known?.said === said) return known.cell;
    const cell = known?.cell ?? h("div", { role: "listitem" });
    cell.className = `photo ${photo.warnings.length ? "warned" : ""}`;
    Object.assign(cell.dataset, {
      test: "photo",
      photo: photo.id,
      warnings: photo.warnings.map(({ kind }) => kind).join(" "),
    });
    put(
      cell,
      h(
        "div",
        { class: "photo-frame" },
        h("img", { src: api.photoOf(draft.id, photo.id, 200), alt: photo.name, loading: "lazy", decoding: "async" }),
        iconButton("trash", `Remove ${photo.name}`, {
          class: "remove",
          data: { test: "remove-photo" },
          onclick: (event) => busy(event.currentTarget, () => draft.remove([photo])),
        }),
      ),
      h("div", { class: "photo-name", title: photo.name }, photo.name),
      photo.warnings.map(({ text }) => h("p", { class: "photo-warning" }, icon("warning", 18), text)),
    );
    cells.set(photo.id, { cell, said });
    return cell;
  };

  const draw = () => {
    const photos = draft.set?.photos ?? [];
    const warned = photos.filter(({ warnings }) => warnings.length);
    if (warned.length === 0) onlyWarned = false;
    const failures = draft.uploads.filter(({ state }) => state === "failed");
    sending.hidden = draft.pending() === 0;
    if (draft.pending()) sending.set(draft.sent / draft.total);
    const examining = draft.set && draft.set.examined < photos.length && draft.pending() === 0;
    put(
      head,
      draft.pending() > 0 &&
        h(
          "div",
          { class: "row" },
          h("strong", { id: "sending" }, `Sending ${draft.sent} of ${draft.total} …`),
          button("close", "Stop", { id: "stop-sending", class: "quiet", onclick: () => draft.stop() }),
        ),
      examining &&
        h(
          "div",
          { class: "row muted", id: "examining" },
          h("span", { class: "spinner" }),
          `Looking at the photos: ${draft.set.examined} of ${photos.length}`,
        ),
      draft.set?.warnings.map(({ kind, text }) =>
        h("div", { data: { test: "set-warning", kind } }, notice("warn", text)),
      ),
      failures.length > 0 &&
        h(
          "div",
          { class: "notice bad", id: "upload-failures" },
          icon("warning", 28),
          h(
            "div",
            {},
            h("strong", {}, `${many(failures.length, "file")} could not be added.`),
            h(
              "ul",
              {},
              failures
                .slice(0, 5)
                .map(({ name, error }) => h("li", {}, `${name}: ${error.message} ${error.remedy ?? ""}`)),
              failures.length > 5 && h("li", {}, `and ${failures.length - 5} more`),
            ),
          ),
          button("retry", "Try again", {
            id: "retry-uploads",
            onclick: () => draft.add(failures.map(({ file }) => file)),
          }),
        ),
      warned.length > 0 &&
        h(
          "div",
          { class: "row spread" },
          h(
            "label",
            { class: "tick" },
            h("input", {
              type: "checkbox",
              id: "only-warned",
              checked: onlyWarned,
              onchange: (event) => {
                onlyWarned = event.currentTarget.checked;
                draw();
              },
            }),
            `Show only the ${many(warned.length, "photo")} with a warning`,
          ),
          button("trash", `Remove all with warnings (${warned.length})`, {
            id: "remove-warned",
            onclick: (event) => removeAll(event.currentTarget, warned),
          }),
        ),
    );
    const shown = [...photos]
      .sort((a, b) => (b.warnings.length > 0) - (a.warnings.length > 0))
      .filter(({ warnings }) => !onlyWarned || warnings.length);
    const kept = new Set(shown.map(({ id }) => id));
    for (const [id, { cell }] of cells) {
      if (kept.has(id)) continue;
      cell.remove();
      cells.delete(id);
    }
    shown.forEach((photo, at) => {
      const cell = cellOf(photo);
      if (grid.children[at] !== cell) grid.insertBefore(cell, grid.children[at] ?? null);
    });
  };

  const removeAll = async (element, warned) => {
    const left = draft.set.photos.length - warned.length;
    if (
      await confirmed(
        "remove-warned-dialog",
        "Remove photos",
        `${many(warned.length, "photo")} with warnings will be removed; ${left} remain.`,
        "Remove",
        { kind: "danger", symbol: "trash" },
      )
    ) {
      await busy(element, () => draft.remove(warned));
    }
  };

  draft.addEventListener("change", draw, { signal });
  draw();
  return element;
}
