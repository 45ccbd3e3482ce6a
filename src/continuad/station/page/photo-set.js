// The photos from which a product will be taught. They lie on the station; this browser remembers which set is its own.

import * as api from "./api.js";
import { memory, sleep } from "./dom.js";
import { Pool, patiently } from "./pool.js";

const pool = new Pool(2);
const EXAMINING = 1500; // milliseconds between looks at what the station found
let creating = null;
let looking = false;

/** `set` is the station's account (null: no photos yet); `uploads` are {name, state, error} on their way. */
export const draft = Object.assign(new EventTarget(), {
  id: memory.get("photo-set"),
  name: memory.get("teach-name", ""),
  from: memory.get("teach-from", []), // unknown inspections that are among the photos
  set: null,
  uploads: [],
  total: 0, // of the uploads that go on
  sent: 0,

  rename(name) {
    draft.name = name;
    memory.set("teach-name", name);
  },

  comeFrom(inspections) {
    draft.from = inspections ?? [];
    memory.set("teach-from", draft.from);
  },

  /** Take up a set again: the one remembered, or that of a job that failed. */
  async load(id = draft.id) {
    if (id !== draft.id) draft.remember(id);
    if (!id) return draft.tell();
    try {
      draft.set = await api.photoSet(id);
    } catch (error) {
      if (error.status !== 404) throw error;
      draft.remember(null); // it has expired
    }
    draft.tell();
    return draft.look();
  },

  remember(id) {
    draft.id = id;
    draft.set = null;
    memory.set("photo-set", id);
  },

  /** files: anything with {name} and either the file itself or `fetch()` that gets it. */
  add(files) {
    if (draft.total === draft.sent) Object.assign(draft, { total: 0, sent: 0 });
    draft.total += files.length;
    draft.uploads = draft.uploads.filter(({ state }) => state !== "failed");
    for (const file of files) {
      const upload = { name: file.name, file, state: "waiting", error: null };
      draft.uploads.push(upload);
      pool.add(() => draft.send(upload));
    }
    draft.tell();
  },

  async send(upload) {
    if (!draft.uploads.includes(upload)) return;
    try {
      creating ??= draft.id
        ? null
        : api.newPhotoSet().then((set) => {
            draft.remember(set.id);
            draft.set = set;
          });
      await creating;
      const file = upload.file.fetch ? await upload.file.fetch() : upload.file;
      const photo = await patiently(() => api.addPhoto(draft.id, file, upload.name));
      if (!draft.set?.photos.some(({ id }) => id === photo.id)) draft.set?.photos.push({ ...photo, warnings: [] });
      draft.uploads = draft.uploads.filter((other) => other !== upload);
    } catch (error) {
      Object.assign(upload, { state: "failed", error });
    } finally {
      creating = null;
    }
    draft.sent += 1;
    draft.tell();
    draft.look();
  },

  /** Ask for the findings until every photo was examined. */
  async look() {
    if (looking) return;
    looking = true;
    try {
      while (draft.id) {
        const id = draft.id;
        await sleep(draft.set ? EXAMINING / 3 : 0);
        let set;
        try {
          set = await api.photoSet(id);
        } catch (error) {
          if (error.status === 404 && draft.id === id) draft.remember(null);
          else if (error.passing) {
            await sleep(EXAMINING);
            continue;
          }
          break;
        }
        if (draft.id !== id) continue;
        draft.set = set;
        draft.tell();
        if (set.examined >= set.photos.length && draft.pending() === 0) break;
        await sleep(EXAMINING);
      }
    } finally {
      looking = false;
      draft.tell();
    }
  },

  pending() {
    return draft.uploads.filter(({ state }) => state === "waiting").length;
  },

  stop() {
    pool.clear();
    draft.uploads = [];
    Object.assign(draft, { total: 0, sent: 0 });
    draft.tell();
  },

  async remove(photos) {
    for (const photo of photos) {
      await api.removePhoto(draft.id, photo.id).catch((error) => {
        if (error.status !== 404) throw error;
      });
      draft.set.photos = draft.set.photos.filter(({ id }) => id !== photo.id);
      draft.tell();
    }
    await draft.look();
  },

  async discard() {
    draft.stop();
    const { id } = draft;
    draft.letGo();
    if (id) await api.discardPhotoSet(id);
  },

  /** The set belongs to a job now. */
  letGo() {
    draft.remember(null);
    draft.rename("");
    draft.comeFrom([]);
    draft.uploads = [];
    draft.tell();
  },

  tell() {
    draft.dispatchEvent(new Event("change"));
  },
});
