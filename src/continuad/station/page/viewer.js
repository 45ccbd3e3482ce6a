// The viewer: a picture, its heatmap above it or beside it, zoom and pan.

import { atEnd, h, memory, put } from "./dom.js";
import { icon } from "./icons.js";
import { iconButton, button } from "./parts.js";
import { drawHeat } from "./heat.js";
import { Zoom } from "./zoom.js";
import { keys } from "./keys.js";
import { mapOf, pictureOf } from "./api.js";
import { sentence } from "./format.js";

const FIRST_WIDTH = 1600; // of the picture, before it is zoomed

/** A viewer; `show(inspection)` changes what it shows. */
export class Viewer {
  constructor(signal, { inDialog = false } = {}) {
    this.signal = signal;
    this.shown = null;
    this.heat = memory.get("heat", 0.8);
    this.split = memory.get("split", false);
    this.plain = pane("picture", "The picture");
    this.warm = pane("heatmap", "The picture with its heatmap");
    this.canvas = h("canvas", { "aria-hidden": "true" });
    this.warm.content.append(this.canvas);
    this.note = h("div", { class: "stage-note", role: "status", hidden: true });
    this.level = h("output", { class: "level", data: { test: "zoom-level" } }, "1×");
    this.zoom = new Zoom((scale) => {
      this.level.textContent = `${scale.toFixed(scale < 9.95 ? 1 : 0).replace(".0", "")}×`;
      if (scale > 1.5) this.sharpen();
    });
    this.stage = h("div", { class: "stage", id: "stage" }, this.plain.pane, this.warm.pane, this.note);
    this.element = h("div", { class: "viewer" }, this.stage, this.toolbar());
    for (const { pane: element, content } of [this.plain, this.warm]) this.zoom.attach(element, content, signal);
    const watcher = new ResizeObserver(() => this.fit());
    watcher.observe(this.stage);
    atEnd(signal, () => watcher.disconnect());
    keys(
      {
        "+": () => this.zoom.by(1.5),
        "=": () => this.zoom.by(1.5),
        "-": () => this.zoom.by(1 / 1.5),
        0: () => this.zoom.reset(),
        h: () => this.setHeat(this.heat > 0 ? 0 : 0.8),
        s: () => this.setSplit(!this.split),
        inDialog,
      },
      signal,
    );
    this.setHeat(this.heat);
    this.setSplit(this.split);
  }

  toolbar() {
    this.slider = h("input", {
      type: "range",
      id: "heat-opacity",
      min: 0,
      max: 100,
      step: 5,
      "aria-label": "Strength of the heatmap",
      oninput: () => this.setHeat(this.slider.valueAsNumber / 100),
    });
    this.splitButton = button("split", "Side by side", {
      id: "side-by-side",
      onclick: () => this.setSplit(!this.split),
    });
    this.heatTools = h(
      "div",
      { class: "heat-tools" },
      h("label", { class: "slider" }, icon("heat"), h("span", {}, "Heatmap"), this.slider),
      h(
        "div",
        { class: "legend", "aria-hidden": "true" },
        h("div", { class: "ramp" }),
        h(
          "div",
          { class: "marks" },
          ["½×", "limit", "2×", "4×"].map((mark) => h("span", {}, mark)),
        ),
      ),
      this.splitButton,
    );
    return h(
      "div",
      { class: "viewer-tools", role: "toolbar", "aria-label": "Picture" },
      h(
        "div",
        { class: "zoom-tools" },
        iconButton("minus", "Zoom out (−)", { id: "zoom-out", onclick: () => this.zoom.by(1 / 1.5) }),
        this.level,
        iconButton("plus", "Zoom in (+)", { id: "zoom-in", onclick: () => this.zoom.by(1.5) }),
        iconButton("fit", "Whole picture (0)", { id: "zoom-fit", onclick: () => this.zoom.reset() }),
      ),
      this.heatTools,
    );
  }

  setHeat(strength) {
    this.heat = strength;
    memory.set("heat", strength);
    this.slider.value = 100 * strength;
    this.slider.style.setProperty("--at", `${100 * strength}%`);
    this.canvas.style.opacity = strength;
  }

  setSplit(split) {
    this.split = split;
    memory.set("split", split);
    this.splitButton.setAttribute("aria-pressed", split);
    this.layOut();
  }

  layOut() {
    const split = this.split && Boolean(this.shown?.has_map);
    this.stage.classList.toggle("split", split);
    this.plain.pane.hidden = !split;
    // The pane that is always there comes first: it gives the zoom its size.
    this.zoom.panes.sort((a) => (a.pane === this.warm.pane ? -1 : 1));
    this.fit();
  }

  /** Show an inspection; the same one again only refreshes what is said about it. */
  show(inspection) {
    const same = this.shown?.id === inspection.id;
    this.shown = inspection;
    if (same) return;
    this.sharp = inspection.width <= FIRST_WIDTH;
    this.heatTools.hidden = !inspection.has_map;
    this.canvas.hidden = true;
    this.say(inspection.has_picture ? null : "The picture was removed to make room on the disk; the verdict stays.");
    const source = inspection.has_picture ? pictureOf(inspection.id, this.sharp ? null : FIRST_WIDTH) : null;
    for (const { image } of [this.plain, this.warm]) {
      image.alt = sentence(inspection);
      image.hidden = source === null;
      if (source) image.src = source;
      else image.removeAttribute("src");
      image.onerror = () =>
        this.shown === inspection &&
        this.say("The picture cannot be loaded; it may have been removed to make room on the disk.");
    }
    this.zoom.reset();
    this.layOut();
    if (inspection.has_map) this.loadHeat(inspection);
  }

  loadHeat(inspection) {
    const map = new Image();
    map.onload = () => {
      if (this.shown?.id !== inspection.id || this.signal.aborted) return;
      drawHeat(this.canvas, map, inspection, inspection.map_peak, inspection.threshold);
      this.canvas.hidden = false;
    };
    map.src = mapOf(inspection.id);
  }

  // Fetch all pixels once somebody looks closer.
  sharpen() {
    if (this.sharp || !this.shown?.has_picture) return;
    this.sharp = true;
    const { id } = this.shown;
    const full = new Image();
    full.onload = () => {
      if (this.shown?.id === id) for (const { image } of [this.plain, this.warm]) image.src = full.src;
    };
    full.src = pictureOf(id);
  }

  fit() {
    if (!this.shown) return;
    const { clientWidth, clientHeight } = this.warm.pane;
    const scale = Math.min(clientWidth / this.shown.width, clientHeight / this.shown.height);
    this.zoom.size = [this.shown.width * scale, this.shown.height * scale];
    for (const { content } of [this.plain, this.warm]) {
      content.style.width = `${this.zoom.size[0]}px`;
      content.style.height = `${this.zoom.size[1]}px`;
    }
    this.zoom.apply();
  }

  say(text) {
    this.note.hidden = text === null;
    if (text) put(this.note, icon("archive", 32), text);
  }
}

function pane(name, label) {
  const image = h("img", { alt: "", draggable: "false", decoding: "async" });
  const content = h("div", { class: "content" }, image);
  return {
    image,
    content,
    pane: h(
      "div",
      {
        class: "pane",
        tabindex: 0,
        role: "group",
        "aria-label": `${label}; arrows move it when zoomed`,
        data: { test: `pane-${name}` },
      },
      content,
    ),
  };
}
