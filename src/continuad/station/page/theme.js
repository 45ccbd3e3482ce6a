// Light, dark or as the system says. A classic script in the head, so that no page flashes in the wrong colours.
"use strict";

(() => {
  const KEY = "continuad.theme";
  const ORDER = ["auto", "light", "dark"];
  const root = document.documentElement;

  const apply = (theme) => {
    root.dataset.theme = theme;
    root.dispatchEvent(new CustomEvent("theme", { detail: theme }));
  };
  const stored = () => {
    try {
      return ORDER.includes(localStorage.getItem(KEY)) ? localStorage.getItem(KEY) : "auto";
    } catch {
      return "auto"; // storage may be forbidden
    }
  };

  apply(stored());
  root.addEventListener("next-theme", () => {
    const next = ORDER[(ORDER.indexOf(root.dataset.theme) + 1) % ORDER.length];
    try {
      localStorage.setItem(KEY, next);
    } catch {
      // It then holds until the page is left.
    }
    apply(next);
  });
})();
