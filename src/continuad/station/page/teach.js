// Teach: a name, photos of good parts, a button.

import { h, put } from "./dom.js";
import { icon } from "./icons.js";
import { busy, button, complain, confirmed, failed, notice } from "./parts.js";
import * as api from "./api.js";
import { follow, keepJob, named, station } from "./station.js";
import { draft } from "./photo-set.js";
import { photoGrid } from "./photos.js";
import { jobCards, origins } from "./jobs.js";
import { rateChoice } from "./rates.js";
import { choose, intake } from "./intake.js";
import { Camera } from "./camera.js";
import { keys } from "./keys.js";
import { many } from "./format.js";

export function teachPage({ root, signal, query }) {
  const rates = rateChoice();
  const again = query.get("again");
  if (again !== null) draft.rename(again);
  const name = h("input", {
    id: "teach-name",
    maxlength: 80,
    autocomplete: "off",
    placeholder: "for example: cap, blue",
    value: draft.name,
    oninput: () => {
      draft.rename(name.value);
      check();
    },
  });
  const known = h("div", {});
  const replace = h("input", {
    type: "checkbox",
    id: "teach-replace",
    checked: again !== null,
    onchange: () => check(),
  });
  const meter = h("div", { class: "photo-meter" });
  const missing = h("p", { class: "muted", id: "teach-missing", role: "status" });
  const start = button("teach", "Teach this product", {
    id: "teach-start",
    class: "primary huge",
    onclick: () => busy(start, begin).then(check),
  });
  const discard = button("trash", "Start over", {
    id: "teach-discard",
    class: "quiet",
    onclick: async () => {
      if (
        await confirmed(
          "discard-dialog",
          "Start over",
          `${many(draft.set?.photos.length ?? 0, "photo")} will be removed from the station.`,
          "Remove them",
          { kind: "danger", symbol: "trash" },
        )
      )
        busy(discard, () => draft.discard());
    },
  });
  const cameraPlace = h("div", { hidden: true });
  const camera = new Camera({ signal, closed: () => film(false), taken: (file) => draft.add([file]) });
  const film = (yes) => {
    cameraPlace.hidden = !yes;
    put(cameraPlace, yes && camera.element);
    if (yes) camera.start();
    else camera.stop();
  };
  const pick = (folder) => async () => add(await choose({ folder }), true);
  const add = (files, quiet = false) => {
    const limits = station.status?.limits;
    if (files.length === 0) {
      if (!quiet)
        complain({
          message: "There was no picture in that.",
          remedy: "Drop PNG, JPEG, BMP, TIFF or WebP pictures, or a folder of them.",
        });
      return;
    }
    const room = (limits?.photos ?? Infinity) - (draft.set?.photos.length ?? 0);
    if (files.length > room)
      complain({
        message: `A product is taught from ${limits.photos} photos at most.`,
        remedy: `The first ${room} of ${files.length} are taken.`,
      });
    draft.add(files.slice(0, room));
  };

  const form = h(
    "section",
    { class: "teach-form", id: "teach-form", "aria-label": "A new product" },
    step(1, "Name the product", name, known),
    step(
      2,
      "Photos of good parts",
      h(
        "div",
        { class: "drop-zone" },
        icon("files", 48),
        h("p", {}, "Drop photos or a folder here, or paste them. Only good parts, taken as they will be inspected."),
        h(
          "div",
          { class: "row centre" },
          button("files", "Choose photos", { id: "teach-choose", class: "primary", onclick: pick(false) }),
          button("folder", "Choose a folder", { id: "teach-folder", onclick: pick(true) }),
          button("camera", "Camera", { id: "teach-camera", onclick: () => film(true) }),
        ),
      ),
      cameraPlace,
      meter,
      photoGrid(signal),
    ),
    step(3, "How strict?", rates.element),
    h("div", { class: "row end start-row" }, missing, discard, start),
  );
  put(
    root,
    h("div", { class: "page" }, h("h1", {}, "Teach a product"), jobCards(signal), form),
    h("div", { class: "drop-shade", "aria-hidden": "true" }, icon("files", 96), "Drop photos of good parts"),
  );

  function check() {
    const photos = draft.set?.photos.length ?? 0;
    const { minimum_photos: minimum = 6, advised_photos: advised = 50 } = station.status ?? {};
    const same = named(draft.name.trim());
    if (document.activeElement !== name && name.value !== draft.name) name.value = draft.name;
    if (same && !known.firstChild)
      put(
        known,
        notice(
          "warn",
          h("strong", {}, `The station knows “${same.name}” already.`),
          h(
            "label",
            { class: "tick" },
            replace,
            "Teach it again: what it knows now is replaced once the new photos are learnt",
          ),
        ),
      );
    else if (!same) put(known);
    const reasons = [
      draft.name.trim() === "" && "a name",
      photos < minimum && `${many(minimum - photos, "more photo")}`,
      same && !replace.checked && "your consent that the product is replaced",
      draft.pending() > 0 && "the photos to be sent",
    ].filter(Boolean);
    if (start.getAttribute("aria-busy") !== "true") start.disabled = reasons.length > 0;
    missing.textContent = reasons.length
      ? `Still needed: ${reasons.join(", ")}`
      : photos < advised
        ? `Ready. More photos (${advised} or so) make fewer false alarms.`
        : "Ready.";
    discard.hidden = photos === 0;
    const share = (n) => `${Math.min(100, (100 * n) / (1.2 * advised))}%`;
    put(
      meter,
      h(
        "div",
        { class: "row spread" },
        h("strong", { id: "photo-count" }, many(photos, "photo")),
        h("span", { class: "muted" }, `at least ${minimum}, better ${advised}`),
      ),
      h(
        "div",
        {
          class: "meter",
          role: "meter",
          "aria-label": "Photos",
          "aria-valuemin": 0,
          "aria-valuemax": Math.max(advised, photos),
          "aria-valuenow": photos,
        },
        h("div", {
          class: photos < minimum ? "few" : photos < advised ? "some" : "enough",
          style: { width: share(photos) },
        }),
        h("i", { style: { left: share(minimum) } }),
        h("i", { style: { left: share(advised) } }),
      ),
    );
  }

  async function begin() {
    const set = draft.id;
    const product = draft.name.trim();
    const job = await api.teach({
      name: product,
      photo_set: set,
      false_alarm_rate: rates.chosen.value,
      replace: Boolean(named(product)) && replace.checked,
    });
    origins.keep(job, { set, name: product, from: draft.from });
    draft.letGo();
    name.value = "";
    replace.checked = false;
    film(false);
    keepJob(job);
    window.scrollTo({ top: 0, behavior: "smooth" });
  }

  // Unknown pictures become the first photos of a product.
  const ids = (query.get("inspections") ?? "").split(",").filter(Boolean);
  if (ids.length) {
    history.replaceState(null, "", "#/teach");
    draft.comeFrom([...new Set([...draft.from, ...ids.map(Number)])]);
    draft
      .load()
      .then(() => draft.add(ids.map((id) => ({ name: `inspection ${id}`, fetch: () => api.original(id) }))))
      .catch(complain);
  } else
    draft.load().catch((error) =>
      put(
        meter,
        failed(error, () => draft.load().catch(complain)),
      ),
    );

  follow(["products", "status"], check, signal);
  draft.addEventListener("change", check, { signal });
  keys({ " ": () => camera.stream && camera.take() }, signal);
  intake(add, signal);
}

const step = (at, title, ...children) =>
  h("section", { class: "step-card card" }, h("h2", {}, h("span", { class: "step-number" }, at), title), children);
