// What every page knows about the station: its status, its products, its jobs. Kept fresh by the events.

import * as api from "./api.js";
import { events } from "./events.js";
import { on } from "./dom.js";

const changes = new EventTarget();

export const station = { status: null, products: null, jobs: [], unknown: 0 };

/** Call `listener` now and whenever one of `topics` ("status", "products", "jobs", "unknown") changes. */
export function follow(topics, listener, signal) {
  for (const topic of topics) on(changes, topic, listener, signal);
  listener();
}

export const active = () => (station.products ?? []).filter((product) => product.state === "active");
export const named = (name) => (station.products ?? []).find((product) => product.name === name);

function set(topic, value) {
  station[topic] = value;
  changes.dispatchEvent(new Event(topic));
}

const READ = {
  status: async () => set("status", await api.status()),
  products: async () => set("products", (await api.products()).items),
  jobs: async () => set("jobs", (await api.jobs()).items),
  unknown: async () => set("unknown", (await api.unknown()).total),
};

/** Ask the station again; ApiErrors are the caller's. */
export async function refresh(...topics) {
  await Promise.all((topics.length ? topics : Object.keys(READ)).map((topic) => READ[topic]()));
}

const quietly = (...topics) => refresh(...topics).catch(() => {});

/** Take in a job that the station has answered with or told of. */
export function keepJob(job) {
  const known = station.jobs.some((other) => other.id === job.id);
  set("jobs", known ? station.jobs.map((other) => (other.id === job.id ? job : other)) : [job, ...station.jobs]);
}

events.addEventListener("open", () => quietly());
events.addEventListener("status", () => quietly("status"));
events.addEventListener("status-read", (event) => set("status", event.detail));
events.addEventListener("products", () => quietly("products"));
events.addEventListener("job", (event) => keepJob(event.detail));
events.addEventListener("inspection", (event) => {
  if (event.detail.label === "unknown") set("unknown", station.unknown + 1);
});
