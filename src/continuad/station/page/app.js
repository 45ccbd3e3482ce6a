// The shell: header, tabs, routes, the connection, the login.

import { h, put } from "./dom.js";
import { icon } from "./icons.js";
import { busy, button, dialog, failed, iconButton } from "./parts.js";
import * as api from "./api.js";
import { events, listen } from "./events.js";
import { follow, refresh, station } from "./station.js";
import { keys } from "./keys.js";
import { help } from "./help.js";
import { inspectPage } from "./inspect.js";
import { teachPage } from "./teach.js";
import { productsPage } from "./products.js";
import { productPage } from "./product.js";
import { historyPage } from "./history.js";
import { unknownPage } from "./unknown.js";

const TABS = [
  ["inspect", "Inspect", inspectPage],
  ["teach", "Teach", teachPage],
  ["products", "Products", productsPage],
  ["history", "History", historyPage],
  ["unknown", "Unknown", unknownPage],
];
const forever = new AbortController().signal;
const main = document.getElementById("main");
const banner = document.getElementById("banner");
let leaving = new AbortController();

/** "#/products/bottle-1?x=2" -> {path: ["products", "bottle-1"], query}. */
function route() {
  const [path, query] = location.hash.replace(/^#\/?/, "").split("?");
  return { path: path.split("/").filter(Boolean).map(decodeURIComponent), query: new URLSearchParams(query) };
}

function go() {
  leaving.abort();
  leaving = new AbortController();
  const { path, query } = route();
  const [name, title, page] = TABS.find(([tab]) => tab === path[0]) ?? TABS[0];
  for (const link of document.querySelectorAll("#tabs a")) {
    if (link.dataset.tab === name) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = `${title} · continuad`;
  document.body.dataset.page = name;
  put(main);
  window.scrollTo(0, 0);
  try {
    (name === "products" && path[1] ? productPage : page)({ root: main, signal: leaving.signal, path, query });
  } catch (error) {
    console.error(error);
    put(
      main,
      failed(
        {
          message: "This page has failed.",
          remedy: "Load it again; if it stays, tell whoever looks after the station.",
        },
        () => location.reload(),
      ),
    );
  }
}

function shell() {
  const counters = {};
  put(
    document.getElementById("tabs"),
    TABS.map(([name, title], at) =>
      h(
        "a",
        {
          href: `#/${name}`,
          class: "tab",
          id: `tab-${name}`,
          data: { tab: name },
          "aria-keyshortcuts": String(at + 1),
        },
        icon(name, 28),
        h("span", {}, title),
        (counters[name] = h("span", { class: "counter", hidden: true })),
      ),
    ),
  );
  const theme = iconButton("auto", "Light or dark", {
    id: "theme",
    class: "quiet",
    onclick: () => document.documentElement.dispatchEvent(new Event("next-theme")),
  });
  const themed = () => {
    const now = document.documentElement.dataset.theme;
    theme.replaceChildren(icon(now));
    theme.title = `Colours: ${{ auto: "as the system", light: "light", dark: "dark" }[now]}`;
    theme.setAttribute("aria-label", theme.title);
  };
  document.documentElement.addEventListener("theme", themed);
  themed();
  const leave = iconButton("leave", "Log out", {
    id: "logout",
    class: "quiet",
    hidden: true,
    onclick: (event) =>
      busy(event.currentTarget, async () => {
        await api.logOut();
        location.reload();
      }),
  });
  put(
    document.getElementById("tools"),
    theme,
    iconButton("help", "Help (?)", { id: "help-button", class: "quiet", onclick: help }),
    leave,
  );
  document.getElementById("skip").addEventListener("click", (event) => {
    event.preventDefault();
    main.focus();
  });
  follow(
    ["jobs", "unknown", "status"],
    () => {
      const teaching = station.jobs.filter(({ state }) => ["queued", "running"].includes(state)).length;
      for (const [name, value, words] of [
        ["teach", teaching, "being taught"],
        ["unknown", station.unknown, "pictures"],
      ]) {
        counters[name].hidden = !value;
        counters[name].textContent = value > 99 ? "99+" : value;
        counters[name].setAttribute("aria-label", `${value} ${words}`);
      }
      leave.hidden = !station.status?.needs_token;
    },
    forever,
  );
  keys(
    { ...Object.fromEntries(TABS.map(([name], at) => [at + 1, () => (location.hash = `#/${name}`)])), "?": help },
    forever,
  );
}

function connection() {
  let timer = 0;
  events.addEventListener("lost", () => {
    timer ||= setTimeout(() => {
      put(
        banner,
        icon("warning", 28),
        h("span", {}, "The station does not answer. What you see may be out of date; the page keeps trying."),
        button("retry", "Try now", { id: "reconnect", onclick: listen }),
      );
      banner.hidden = false;
    }, 1500);
  });
  events.addEventListener("open", () => {
    clearTimeout(timer);
    timer = 0;
    banner.hidden = true;
  });
}

let asking = false;
async function login() {
  if (asking) return;
  asking = true;
  const token = h("input", {
    id: "token",
    type: "password",
    required: true,
    autocomplete: "current-password",
    autofocus: true,
  });
  const wrong = h("div", {});
  const done = await dialog("login", "This station is locked", (close) => {
    const enter = button("key", "Unlock", { id: "login-submit", class: "primary", type: "submit" });
    return h(
      "form",
      {
        onsubmit: async (event) => {
          event.preventDefault();
          enter.disabled = true;
          try {
            await api.logIn(token.value);
            close(true);
          } catch (error) {
            put(wrong, failed(error));
            token.select();
          } finally {
            enter.disabled = false;
          }
        },
      },
      h("label", { class: "field" }, "Token", token),
      wrong,
      h("div", { class: "row end" }, enter),
    );
  });
  asking = false;
  if (!done)
    return put(main, failed({ message: "This station is locked.", remedy: "Unlock it with its token." }, login));
  listen();
  return go();
}

api.wire.addEventListener("locked", login);
window.addEventListener("hashchange", go);
shell();
connection();
go();
listen();
refresh().catch(() => {});
