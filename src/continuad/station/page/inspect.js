// Inspect: pictures come in, verdicts go up.

import { h, put, on } from "./dom.js";
import { icon } from "./icons.js";
import { announce, button, complain, empty, failed, linkButton, waiting } from "./parts.js";
import { active, follow, station } from "./station.js";
import { session } from "./session.js";
import { strip } from "./strip.js";
import { Viewer } from "./viewer.js";
import { VerdictPanel } from "./verdict.js";
import { Camera } from "./camera.js";
import { choose, intake } from "./intake.js";
import { keys } from "./keys.js";
import { sentence } from "./format.js";

export function inspectPage({ root, signal }) {
  const add = (files) => {
    if (files.length === 0)
      complain({ message: "There was no picture in that.", remedy: "Drop PNG, JPEG, BMP, TIFF or WebP pictures." });
    else session.add(files);
  };
  const viewer = new Viewer(signal);
  const panel = new VerdictPanel({ changed: session.update, again: session.again });
  const camera = new Camera({
    signal,
    closed: () => live(false),
    taken: (file) => {
      live(false, { keep: true });
      session.add([file]);
    },
  });
  let cameraIn = false; // use: after a picture the next one is a key away

  const files = () =>
    button("files", "Choose pictures", {
      id: "choose",
      onclick: async () => {
        const chosen = await choose();
        if (chosen.length) add(chosen);
      },
    });
  const cameraButton = button("camera", "Camera", { id: "use-camera", onclick: () => live(true) });
  const lineButton = button("line", "Follow the line", {
    id: "follow-line",
    onclick: () => session.follow(!session.following),
  });
  const lineNote = h("span", { class: "muted", id: "line-note", role: "status" });
  const next = button("camera", "Next picture (space)", {
    id: "camera-next",
    class: "primary",
    hidden: true,
    onclick: () => live(true),
  });
  const product = h("select", {
    id: "inspect-product",
    onchange: () => session.inspectAs(active()[product.selectedIndex - 1] ?? null),
  });
  const bar = h(
    "div",
    { class: "inspect-bar" },
    files(),
    cameraButton,
    lineButton,
    lineNote,
    next,
    h("label", { class: "field inline" }, h("span", {}, "Product"), product),
  );
  const stageArea = h("div", { class: "stage-area" });
  const side = h("div", { class: "side" });
  const body = h("div", { class: "inspect-body" }, stageArea, side);
  put(
    root,
    h("h1", { class: "unseen" }, "Inspect"),
    h("div", { class: "inspect" }, bar, body, strip(signal)),
    h("div", { class: "drop-shade", "aria-hidden": "true" }, icon("files", 96), "Drop to inspect"),
  );

  function live(yes, { keep = false } = {}) {
    cameraIn = yes || keep;
    next.hidden = yes || !cameraIn;
    cameraButton.setAttribute("aria-pressed", cameraIn);
    if (yes) {
      put(stageArea, camera.element);
      body.classList.remove("blank");
      camera.start();
      if (!session.selected)
        put(
          side,
          h("p", { class: "muted centre-text" }, "Hold the part in front of the camera, then take the picture."),
        );
    } else {
      camera.stop();
      show();
    }
  }

  function show() {
    if (camera.stream || stageArea.contains(camera.element)) {
      if (camera.stream) return verdict();
    }
    const item = session.selected;
    body.classList.toggle("blank", !item);
    if (!item) {
      put(stageArea, welcome());
      put(side);
      return undefined;
    }
    if (item.inspection) {
      if (viewer.element.parentNode !== stageArea) put(stageArea, viewer.element);
      viewer.show(item.inspection);
    } else
      put(
        stageArea,
        h(
          "div",
          { class: "viewer" },
          h(
            "div",
            { class: "stage" },
            h("img", {
              class: "preview",
              src: item.url,
              alt: item.name,
              onerror: (event) => event.currentTarget.remove(),
            }),
          ),
        ),
      );
    return verdict();
  }

  function verdict() {
    const item = session.selected;
    if (!item) return;
    if (item.inspection) {
      if (panel.element.parentNode !== side) put(side, panel.element);
      if (panel.shown !== item.inspection) panel.show(item.inspection);
    } else if (item.state === "failed") {
      put(
        side,
        failed(item.error, () => session.queue(item)),
        item.error.status === 409 && linkButton("teach", "Teach a product", "#/teach", { class: "primary wide" }),
      );
    } else put(side, h("div", { class: "sign pending" }, waiting("Inspecting …")));
  }

  function welcome() {
    const { status, products } = station;
    if (products === null) return waiting();
    if (active().length === 0) {
      return empty(
        "teach",
        "Teach the first product",
        "The station does not know any product yet. Show it photos of good parts, 6 at least and better 50; it needs no photo of a defect.",
        linkButton("teach", "Teach a product", "#/teach", { class: "primary huge", id: "first-teach" }),
      );
    }
    if (session.following && status?.watch) {
      return empty(
        "line",
        "Waiting for the next part",
        `The verdict on every picture from ${status.watch.source} appears here.${status.watch.note ? ` ${status.watch.note}` : ""}`,
        files(),
        button("camera", "Use the camera", { onclick: () => live(true) }),
      );
    }
    return h(
      "div",
      { class: "welcome" },
      empty(
        "inspect",
        "Show me a part",
        "Drop pictures here, paste them, choose files or use the camera.",
        button("files", "Choose pictures", {
          class: "primary huge",
          id: "welcome-choose",
          onclick: async () => {
            const chosen = await choose();
            if (chosen.length) add(chosen);
          },
        }),
        button("camera", "Use the camera", { class: "huge", id: "welcome-camera", onclick: () => live(true) }),
      ),
    );
  }

  follow(
    ["status", "products"],
    () => {
      const known = active();
      if (session.product && station.products && !known.some(({ id }) => id === session.product.id))
        session.inspectAs(null);
      put(
        product,
        h("option", { value: "" }, "Recognise"),
        known.map(({ id, name }) => h("option", { value: id, selected: id === session.product?.id }, name)),
      );
      lineButton.hidden = !station.status?.watch;
      put(lineNote, station.status?.watch?.note);
      bar.hidden = station.products !== null && known.length === 0;
      if (!session.selected && !camera.stream) show();
    },
    signal,
  );

  const line = () => lineButton.setAttribute("aria-pressed", session.following);
  on(
    session,
    "list",
    () => {
      line();
      if (!session.selected) show();
    },
    signal,
  );
  let told = null;
  const chosen = ({ type }) => {
    show();
    // On a phone the strip lies below the verdict.
    if (type === "select" && body.getBoundingClientRect().top < 0) body.scrollIntoView({ block: "start" });
    const inspection = session.selected?.inspection;
    if (inspection && told !== inspection.id) announce(sentence(inspection));
    told = inspection?.id ?? null;
  };
  on(session, "select", chosen, signal);
  on(session, "item", (event) => event.detail === session.selected && chosen(event), signal);

  const judge = (truth) => () => session.selected?.inspection && panel.judge(truth).catch(complain);
  keys(
    {
      ArrowRight: () => session.step(1),
      ArrowLeft: () => session.step(-1),
      End: () => session.newest(),
      g: judge("good"),
      b: judge("bad"),
      " ": () => (camera.stream ? camera.take() : cameraIn && live(true)),
      Escape: () => cameraIn && live(false),
    },
    signal,
  );
  intake(add, signal);
  line();
  show();
}
