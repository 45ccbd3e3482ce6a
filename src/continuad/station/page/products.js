// Products: what the station knows.

import { h, put } from "./dom.js";
import { icon } from "./icons.js";
import { busy, button, empty, failed, linkButton, toast, waiting } from "./parts.js";
import * as api from "./api.js";
import { follow, refresh, station } from "./station.js";
import { bytes, count, day, many, oneIn, when } from "./format.js";

const SHOWN = 4; // sample photos on a card

export function productsPage({ root, signal }) {
  const list = h("div", { class: "groups" });
  put(
    root,
    h(
      "div",
      { class: "page" },
      h(
        "div",
        { class: "row spread" },
        h("h1", {}, "Products"),
        linkButton("plus", "Teach a product", "#/teach", { id: "products-teach", class: "primary" }),
      ),
      list,
    ),
  );
  const load = () => refresh("products").catch((error) => put(list, failed(error, load)));
  put(list, waiting());
  load();
  follow(
    ["products"],
    () => {
      if (station.products === null) return;
      const [active, archived] = ["active", "archived"].map((state) =>
        station.products.filter((product) => product.state === state),
      );
      if (station.products.length === 0) {
        put(
          list,
          empty(
            "products",
            "No product yet",
            "Teach the first one: photos of good parts are enough.",
            linkButton("teach", "Teach a product", "#/teach", { class: "primary huge" }),
          ),
        );
        return;
      }
      put(
        list,
        h("div", { class: "cards", id: "products" }, active.map(card)),
        archived.length > 0 && [
          h("h2", {}, "Archived"),
          h("p", { class: "muted" }, "They are not recognised while they are archived, and nothing of them is lost."),
          h("div", { class: "cards", id: "archived" }, archived.map(card)),
        ],
      );
    },
    signal,
  );
}

function card(product) {
  const { id, name, state, counts } = product;
  const restore =
    state === "archived" &&
    button("up", "Restore", {
      data: { test: "restore" },
      onclick: (event) =>
        busy(event.currentTarget, async () => {
          await api.changeProduct(id, { archived: false });
          toast("ok", `“${name}” is recognised again.`);
          await refresh("products");
        }),
    });
  return h(
    "article",
    { class: `card product ${state}`, data: { test: "product", name } },
    h(
      "a",
      { class: "product-link", href: `#/products/${encodeURIComponent(id)}`, "aria-label": name },
      samples(product, SHOWN),
      h("h2", {}, name),
      h(
        "dl",
        { class: "numbers" },
        h("div", {}, h("dt", {}, icon("good", 18), "good"), h("dd", {}, count(counts.normal))),
        h("div", {}, h("dt", {}, icon("defect", 18), "defect"), h("dd", {}, count(counts.anomalous))),
        h("div", {}, h("dt", {}, "may stop"), h("dd", {}, oneIn(product.false_alarm_rate))),
      ),
      h(
        "p",
        { class: "muted" },
        `${many(product.images, "photo")} · ${bytes(product.bytes)} · taught ${day(product.learnt)}`,
      ),
      h(
        "p",
        { class: "muted" },
        product.last_inspected ? `last inspected ${when(product.last_inspected)}` : "not inspected yet",
      ),
    ),
    restore,
  );
}

/** Photos it was taught with. */
export function samples(product, most) {
  const n = Math.min(most, product.samples);
  return h(
    "div",
    { class: "samples" },
    n === 0
      ? h("span", { class: "no-picture" }, icon("products", 32), "no sample photos")
      : Array.from({ length: n }, (_, at) => h("img", { src: api.sampleOf(product.id, at), alt: "", loading: "lazy" })),
  );
}
