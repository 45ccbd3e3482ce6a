// One product: what it knows, how strict it is, and what can be done with it.

import { h, put } from "./dom.js";
import { busy, button, confirmed, dialog, failed, linkButton, toast, waiting } from "./parts.js";
import * as api from "./api.js";
import { events } from "./events.js";
import { refresh } from "./station.js";
import { samples } from "./products.js";
import { strictness } from "./strictness.js";
import { bytes, count, day, many, number, oneIn } from "./format.js";

export function productPage({ root, signal, path }) {
  const place = h("div", { class: "page" }, waiting());
  put(root, place);
  let id = path[1];
  const load = async () => {
    try {
      show(await api.product(id, signal));
    } catch (error) {
      if (error.name === "AbortError") return;
      put(place, failed(error, load), linkButton("left", "All products", "#/products"));
    }
  };
  const changed = async (product) => {
    refresh("products").catch(() => {});
    if (product.id !== id) {
      id = product.id;
      history.replaceState(null, "", `#/products/${encodeURIComponent(id)}`); // the name is part of the address
    }
    show(product);
  };

  const facts = h("dl", { class: "fact-grid" });
  const show = (product) => {
    fill(facts, product);
    put(
      place,
      h("div", { class: "row" }, linkButton("left", "All products", "#/products", { id: "back", class: "quiet" })),
      h(
        "div",
        { class: "row spread" },
        h("h1", { id: "product-name" }, product.name),
        product.state === "archived" && h("span", { class: "badge unknown" }, "archived"),
        manage(product, changed),
      ),
      samples(product, 8),
      facts,
      strictness(product, { signal, applied: changed }),
    );
  };
  const catchUp = async () => {
    if (!facts.isConnected) return load();
    try {
      fill(facts, await api.product(id, signal)); // and leave a choice that is not applied yet as it is
    } catch {
      // the page still shows what was known; the next connection tries again
    }
  };
  load();
  events.addEventListener("open", catchUp, { signal });
}

function fill(element, product) {
  const { counts } = product;
  const rows = [
    ["Inspected", `${count(counts.normal)} good, ${count(counts.anomalous)} defect`],
    ["Corrected by people", `${count(counts.good)} good, ${count(counts.bad)} bad`],
    ["Good parts that may be stopped", oneIn(product.false_alarm_rate)],
    ["Limit", number(product.threshold)],
    ["Taught", `${day(product.learnt)}, ${many(product.images, "photo")}, ${number(product.seconds)} s`],
    ["Size", bytes(product.bytes)],
    ["Method", product.method, product.reason],
  ];
  put(
    element,
    rows.map(([name, value, more]) =>
      h("div", {}, h("dt", {}, name), h("dd", {}, value, more && h("small", {}, more))),
    ),
  );
}

function manage(product, changed) {
  const { id, name, state } = product;
  const archived = state === "archived";
  const act = (element, work, done) =>
    busy(element, async () => {
      const answer = await work();
      toast("ok", done);
      await changed(answer);
    });
  const rename = button("edit", "Rename", {
    id: "rename",
    onclick: async () => {
      const renamed = await renameDialog(product);
      if (renamed) {
        toast("ok", `“${name}” is now “${renamed.name}”.`);
        await changed(renamed);
      }
    },
  });
  const archive = button(archived ? "up" : "archive", archived ? "Restore" : "Archive", {
    id: "archive",
    onclick: async () => {
      if (
        !archived &&
        !(await confirmed(
          "archive-dialog",
          `Archive “${name}”`,
          "Its parts will be unknown until it is restored. Nothing of it is lost.",
          "Archive",
          { symbol: "archive" },
        ))
      )
        return;
      act(
        archive,
        () => api.changeProduct(id, { archived: !archived }),
        archived ? `“${name}” is recognised again.` : `“${name}” is archived.`,
      );
    },
  });
  const forget = button("trash", "Forget", {
    id: "forget",
    class: "danger-text",
    onclick: async () => {
      if (!(await forgetDialog(product))) return;
      toast("ok", `“${name}” was forgotten.`);
      refresh("products").catch(() => {});
      location.hash = "#/products";
    },
  });
  return h(
    "div",
    { class: "row" },
    linkButton("teach", "Teach again", `#/teach?again=${encodeURIComponent(name)}`, { id: "teach-again" }),
    linkButton("history", "History", `#/history?product=${encodeURIComponent(name)}`, { id: "product-history" }),
    rename,
    archive,
    forget,
  );
}

const renameDialog = (product) =>
  dialog("rename-dialog", `Rename “${product.name}”`, (close) => {
    const name = h("input", {
      id: "rename-name",
      value: product.name,
      maxlength: 80,
      required: true,
      autocomplete: "off",
      autofocus: true,
    });
    const save = button("edit", "Rename", { id: "rename-confirm", class: "primary", type: "submit" });
    return h(
      "form",
      {
        onsubmit: (event) => {
          event.preventDefault();
          busy(save, async () => close(await api.changeProduct(product.id, { name: name.value.trim() })));
        },
      },
      h("label", { class: "field" }, "New name", name),
      h("p", { class: "muted" }, "The history follows; nothing is taught anew."),
      h("div", { class: "row end" }, button(null, "Cancel", { onclick: () => close() }), save),
    );
  });

const forgetDialog = (product) =>
  dialog("forget-dialog", `Forget “${product.name}”`, (close) => {
    const forget = button("trash", "Forget for ever", {
      id: "forget-confirm",
      class: "danger",
      type: "submit",
      disabled: true,
    });
    const typed = h("input", {
      id: "forget-name",
      autocomplete: "off",
      autofocus: true,
      oninput: () => (forget.disabled = typed.value !== product.name),
    });
    return h(
      "form",
      {
        onsubmit: (event) => {
          event.preventDefault();
          busy(forget, async () => {
            await api.forgetProduct(product.id);
            close(true);
          });
        },
      },
      h(
        "p",
        {},
        "What was learnt of it is removed and cannot be brought back. Its past verdicts stay in the history. To take it out of use for a while, archive it instead.",
      ),
      h("label", { class: "field" }, h("span", {}, "To go on, type its name: ", h("strong", {}, product.name)), typed),
      h("div", { class: "row end" }, button(null, "Cancel", { id: "forget-cancel", onclick: () => close() }), forget),
    );
  });
