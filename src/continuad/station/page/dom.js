// Elements from plain calls. Text becomes text nodes, never HTML: names come from people.

const SVG = "http://www.w3.org/2000/svg";

/** h("button", {class: "big", onclick: start, disabled: busy}, "Start"); null, false and true children vanish. */
export const h = (tag, props, ...children) => build(document.createElement(tag), props, children);

/** The same for SVG. */
export const s = (tag, props, ...children) => build(document.createElementNS(SVG, tag), props, children);

function build(element, props, children) {
  for (const [name, value] of Object.entries(props ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "data") Object.assign(element.dataset, value);
    else if (name === "style") for (const [key, v] of Object.entries(value)) element.style.setProperty(key, v);
    else if (name === "value") element.value = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  fill(element, ...children);
  return element;
}

/** Append children, however nested. */
export function fill(element, ...children) {
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || typeof child === "boolean") continue;
    element.append(child instanceof Node ? child : String(child));
  }
  return element;
}

/** Replace everything in an element. */
export function put(element, ...children) {
  element.replaceChildren();
  return fill(element, ...children);
}

/** Listeners that go when `signal` is aborted. */
export function on(target, type, listener, signal, options = {}) {
  target.addEventListener(type, listener, { signal, ...options });
}

/** Call when `signal` is aborted. (A listener with `{signal}` of that same signal is removed before it is told.) */
export const atEnd = (signal, call) => signal.addEventListener("abort", call, { once: true });

/** Wait, or throw AbortError when `signal` is aborted. */
export function sleep(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    signal?.throwIfAborted();
    const stop = () => {
      clearTimeout(timer);
      reject(signal.reason);
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener("abort", stop);
      resolve();
    }, milliseconds);
    signal?.addEventListener("abort", stop, { once: true });
  });
}

/** The last of many calls within `milliseconds`. */
export function debounce(milliseconds, call) {
  let timer = 0;
  return (...values) => {
    clearTimeout(timer);
    timer = setTimeout(() => call(...values), milliseconds);
  };
}

/** What this browser remembers between visits; forgets quietly where storage is forbidden. */
export const memory = {
  get(key, otherwise = null) {
    try {
      return JSON.parse(localStorage.getItem(`continuad.${key}`)) ?? otherwise;
    } catch {
      return otherwise;
    }
  },
  set(key, value) {
    try {
      localStorage.setItem(`continuad.${key}`, JSON.stringify(value));
    } catch {
      // Private windows and full disks: the page works without.
    }
  },
};
