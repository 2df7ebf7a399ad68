// Conversations in the browser's own database. Where there is none they last as long as the page.

const NAME = "tuili";
const STORE = "conversations";

function settled(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

async function open() {
  const request = indexedDB.open(NAME, 1);
  request.onupgradeneeded = () => request.result.createObjectStore(STORE, { keyPath: "id" });
  return settled(request);
}

/** Keeps whole conversations by their ids. */
export class Database {
  #db = null;
  #memory = new Map();

  /** Opens the database; `lasting` says afterwards whether it outlives the page. */
  async open() {
    try {
      this.#db = await open();
      // Another page with a newer form of the database may not have to wait for this one.
      this.#db.onversionchange = () => this.#db.close();
    } catch {
      this.#db = null;
    }
  }

  get lasting() {
    return this.#db !== null;
  }

  /** Makes a change that lasts, even if the page goes before it is told so. */
  #write(change) {
    const transaction = this.#db.transaction(STORE, "readwrite");
    change(transaction.objectStore(STORE));
    return new Promise((resolve, reject) => {
      transaction.oncomplete = resolve;
      transaction.onabort = () => reject(transaction.error);
      transaction.commit();
    });
  }

  async all() {
    if (this.#db === null) return [...this.#memory.values()];
    return settled(this.#db.transaction(STORE, "readonly").objectStore(STORE).getAll());
  }

  /** Keeps a copy. Rejects when there is no room for it. */
  async put(conversation) {
    const copy = structuredClone(conversation);
    if (this.#db === null) this.#memory.set(copy.id, copy);
    else await this.#write((store) => store.put(copy));
  }

  async remove(id) {
    this.#memory.delete(id);
    if (this.#db !== null) await this.#write((store) => store.delete(id));
  }
}
