// Zoom and pan of one or more panes that show the same picture: wheel, pinch, drag, keys.

import { atEnd, on } from "./dom.js";

const MOST = 16;

/** The shared view of all panes: `scale` 1 fits the picture; x and y are in pixels of the pane. */
export class Zoom {
  constructor(changed) {
    this.panes = [];
    this.changed = changed;
    this.size = [1, 1]; // of the fitted picture, pixels of the pane
    this.reset();
  }

  reset() {
    Object.assign(this, { scale: 1, x: 0, y: 0 });
    this.apply();
  }

  /** Zoom by `factor` around a point given from the pane's centre. */
  by(factor, x = 0, y = 0) {
    const scale = Math.min(MOST, Math.max(1, this.scale * factor));
    const grown = scale / this.scale;
    this.scale = scale;
    this.x = x - (x - this.x) * grown;
    this.y = y - (y - this.y) * grown;
    this.apply();
  }

  pan(dx, dy) {
    this.x += dx;
    this.y += dy;
    this.apply();
  }

  apply() {
    if (this.panes.length) {
      const { clientWidth, clientHeight } = this.panes[0].pane;
      const [width, height] = this.size;
      const room = (picture, pane) => Math.max(0, (picture * this.scale - pane) / 2);
      const [right, down] = [room(width, clientWidth), room(height, clientHeight)];
      this.x = Math.min(right, Math.max(-right, this.x));
      this.y = Math.min(down, Math.max(-down, this.y));
    }
    for (const { pane, content } of this.panes) {
      content.style.transform = `translate(${this.x}px, ${this.y}px) scale(${this.scale})`;
      // At rest a finger scrolls the page; when zoomed, it moves the picture.
      pane.style.touchAction = this.scale > 1 ? "none" : "pan-y";
      pane.classList.toggle("zoomed", this.scale > 1);
    }
    this.changed?.(this.scale);
  }

  /** Let `pane` be zoomed; `content` lies in its middle. */
  attach(pane, content, signal) {
    const entry = { pane, content };
    this.panes.push(entry);
    atEnd(signal, () => this.panes.splice(this.panes.indexOf(entry), 1));
    const fingers = new Map();
    const centred = (event) => {
      const box = pane.getBoundingClientRect();
      return [event.clientX - box.left - box.width / 2, event.clientY - box.top - box.height / 2];
    };

    on(
      pane,
      "wheel",
      (event) => {
        if (this.scale === 1 && event.deltaY > 0) return;
        event.preventDefault();
        this.by(Math.exp(-event.deltaY * (event.deltaMode === 1 ? 0.05 : 0.0018)), ...centred(event));
      },
      signal,
      { passive: false },
    );
    on(pane, "dblclick", (event) => (this.scale > 1 ? this.reset() : this.by(3, ...centred(event))), signal);

    on(
      pane,
      "pointerdown",
      (event) => {
        fingers.set(event.pointerId, centred(event));
        if (this.scale > 1 || fingers.size > 1) pane.setPointerCapture(event.pointerId);
      },
      signal,
    );
    on(
      pane,
      "pointermove",
      (event) => {
        const before = fingers.get(event.pointerId);
        if (!before) return;
        const now = centred(event);
        if (fingers.size === 1) {
          if (this.scale > 1) this.pan(now[0] - before[0], now[1] - before[1]);
        } else if (fingers.size === 2) {
          const other = [...fingers].find(([id]) => id !== event.pointerId)[1];
          const apart = (point) => Math.hypot(point[0] - other[0], point[1] - other[1]);
          const middle = [(now[0] + other[0]) / 2, (now[1] + other[1]) / 2];
          this.pan((now[0] - before[0]) / 2, (now[1] - before[1]) / 2);
          this.by(apart(now) / Math.max(1, apart(before)), ...middle);
        }
        fingers.set(event.pointerId, now);
      },
      signal,
    );
    for (const end of ["pointerup", "pointercancel", "pointerleave"]) {
      on(pane, end, (event) => fingers.delete(event.pointerId), signal);
    }
    on(
      pane,
      "keydown",
      (event) => {
        const step = { ArrowLeft: [80, 0], ArrowRight: [-80, 0], ArrowUp: [0, 80], ArrowDown: [0, -80] }[event.key];
        if (!step || this.scale === 1) return;
        event.preventDefault();
        this.pan(...step);
      },
      signal,
    );
  }
}
