// Help: what the pages are for, and the keys.

import { h } from "./dom.js";
import { icon } from "./icons.js";
import { dialog } from "./parts.js";
import { station } from "./station.js";
import { SYMBOLS, WORDS } from "./format.js";

const VERDICTS = {
  normal: "The part looks like the good parts that the product was taught with.",
  anomalous: "Something is different from them. The heatmap shows where: magenta at the limit, yellow far above it.",
  unknown: "The picture is of no product that the station knows. Teach it, or inspect it as one anyway.",
};
const KEYS = [
  ["1 – 5", "the pages"],
  ["← →", "the picture before, the next one"],
  ["g / b", "this was good / this was bad"],
  ["+ − 0", "zoom in, zoom out, whole picture"],
  ["h / s", "heatmap on and off / side by side"],
  ["space", "take a picture with the camera, then the next"],
  ["End", "go to the newest part"],
  ["Esc", "close"],
  ["?", "this help"],
];

export function help() {
  const { status } = station;
  dialog(
    "help",
    "Help",
    () => [
      h(
        "div",
        { class: "help-verdicts" },
        Object.entries(VERDICTS).map(([label, text]) =>
          h(
            "div",
            { class: "row nowrap" },
            h("span", { class: `help-sign ${label}` }, icon(SYMBOLS[label], 36)),
            h("p", {}, h("strong", {}, WORDS[label]), h("br"), text),
          ),
        ),
      ),
      h("h3", {}, "How to go on"),
      h(
        "ul",
        {},
        h("li", {}, "Teach: photos of good parts are enough. 6 at least, better 50, taken as they will be inspected."),
        h(
          "li",
          {},
          "A wrong verdict? Say “this was good” or “this was bad”. Under Products the limit can then be set anew.",
        ),
        h(
          "li",
          {},
          "Too many good parts stopped? Products → the product → fewer false alarms; you see the effect before it counts.",
        ),
      ),
      h("h3", {}, "Keys"),
      h(
        "dl",
        { class: "keys" },
        KEYS.map(([key, what]) => [h("dt", {}, h("kbd", {}, key)), h("dd", {}, what)]),
      ),
      status &&
        h(
          "p",
          { class: "muted" },
          `continuad ${status.version} · ${status.bank} · ${status.backbone}, ${status.image_size} pixels`,
        ),
    ],
    { wide: true },
  );
}
