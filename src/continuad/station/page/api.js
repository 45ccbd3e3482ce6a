// The station's HTTP API, one function for one request.

const ROOT = new URL("../", import.meta.url);

/** A request that failed: what is wrong and what to do. Status 0: the station was not reached. */
export class ApiError extends Error {
  constructor(status, problem, remedy, retryAfter = null) {
    super(problem);
    Object.assign(this, { name: "ApiError", status, problem, remedy, retryAfter });
  }

  /** Whether the same request may succeed a little later. */
  get passing() {
    return this.status === 0 || this.status === 429 || this.status === 503;
  }
}

/** Told of what every page must know: "answer", "silence", "locked". */
export const wire = new EventTarget();

export function address(path, query = {}) {
  const url = new URL(`api/v1/${path}`, ROOT);
  for (const [key, value] of Object.entries(query)) {
    if (value !== null && value !== undefined && value !== "" && value !== false) url.searchParams.set(key, value);
  }
  return url.href;
}

async function call(method, path, { query, json, body, headers, signal } = {}) {
  let response;
  try {
    response = await fetch(address(path, query), {
      method,
      signal,
      credentials: "same-origin",
      cache: "no-store",
      headers: { ...(json === undefined ? {} : { "Content-Type": "application/json" }), ...headers },
      body: json === undefined ? body : JSON.stringify(json),
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    wire.dispatchEvent(new Event("silence"));
    throw new ApiError(
      0,
      "The station does not answer.",
      "Check that it runs and that the network works; the page keeps trying.",
    );
  }
  wire.dispatchEvent(new Event("answer"));
  if (response.ok) return response.status === 204 ? null : response.json();
  if (response.status === 401 && path !== "session") wire.dispatchEvent(new Event("locked"));
  throw await failure(response);
}

async function failure(response) {
  let said = {};
  try {
    said = await response.json();
  } catch {
    // A proxy in between answered in its own words.
  }
  const wait = Number.parseFloat(response.headers.get("Retry-After"));
  return new ApiError(
    response.status,
    said.problem ?? `The station answered ${response.status} ${response.statusText}.`,
    said.remedy ?? "Try again; if it stays, ask whoever looks after the station.",
    Number.isFinite(wait) ? wait : null,
  );
}

const get = (path, query, signal) => call("GET", path, { query, signal });
const part = encodeURIComponent;

export const logIn = (token) => call("POST", "session", { json: { token } });
export const logOut = () => call("DELETE", "session");
export const status = (signal) => get("status", {}, signal);

/** body: a Blob; key: the same for every attempt, so that a repeated request inspects once. */
export const inspect = (body, { product, nearest, reference, key, signal }) =>
  call("POST", "inspections", {
    body,
    query: { product, nearest, reference, source: "page" },
    headers: {
      "Content-Type": body.type.startsWith("image/") ? body.type : "application/octet-stream",
      "Idempotency-Key": key,
    },
    signal,
  });
export const inspections = (query, signal) => get("inspections", query, signal);
export const inspection = (id, signal) => get(`inspections/${id}`, {}, signal);
export const setTruth = (id, truth) => call("PUT", `inspections/${id}/truth`, { json: { truth } });
export const pictureOf = (id, width) => address(`inspections/${id}/picture`, { width });
export const mapOf = (id) => address(`inspections/${id}/map`);
export const historyFile = (suffix, query) => address(`history.${suffix}`, query);

/** The bytes of an inspected picture as they came in. */
export async function original(id, signal) {
  const response = await fetch(address(`inspections/${id}/picture`, { original: true }), { signal });
  if (!response.ok) throw await failure(response);
  return response.blob();
}

export const products = (signal) => get("products", {}, signal);
export const product = (id, signal) => get(`products/${part(id)}`, {}, signal);
export const sampleOf = (id, index) => address(`products/${part(id)}/samples/${index}`);
export const changeProduct = (id, json) => call("PATCH", `products/${part(id)}`, { json });
export const forgetProduct = (id) => call("DELETE", `products/${part(id)}`);
export const calibration = (id, rate, useCorrections, signal) =>
  get(
    `products/${part(id)}/calibration`,
    { false_alarm_rate: rate, use_corrections: useCorrections ? "true" : null },
    signal,
  );
export const recalibrate = (id, rate, useCorrections) =>
  call("POST", `products/${part(id)}/recalibration`, {
    json: { false_alarm_rate: rate, use_corrections: useCorrections },
  });

export const newPhotoSet = () => call("POST", "photo-sets");
export const photoSet = (id, signal) => get(`photo-sets/${part(id)}`, {}, signal);
export const discardPhotoSet = (id) => call("DELETE", `photo-sets/${part(id)}`);
export const addPhoto = (set, body, name, signal) =>
  call("POST", `photo-sets/${part(set)}/photos`, {
    body,
    query: { name },
    headers: { "Content-Type": body.type.startsWith("image/") ? body.type : "application/octet-stream" },
    signal,
  });
export const removePhoto = (set, photo) => call("DELETE", `photo-sets/${part(set)}/photos/${photo}`);
export const photoOf = (set, photo, width) => address(`photo-sets/${part(set)}/photos/${photo}/picture`, { width });

export const teach = (json) => call("POST", "teachings", { json });
export const jobs = (signal) => get("jobs", {}, signal);
export const cancelJob = (id) => call("POST", `jobs/${part(id)}/cancel`);

export const unknown = (signal) => get("unknown", {}, signal);
export const dismiss = (ids) => call("POST", "unknown/dismiss", { json: { inspections: ids } });
export const audit = (before, signal) => get("audit", { before, limit: 50 }, signal);
export const events = () => address("events");
