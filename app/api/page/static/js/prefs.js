// What a person chose, kept in this browser: language, theme, how answers are shown; the API key apart from it.

const PREFS = "tuili.prefs";
const KEY = "tuili.key";
const DEFAULTS = {
  language: "auto",
  theme: "auto",
  alternatives: 5,
  tint: false,
  panel: null,
  conversation: null,
  settings: null,
};

function read(storage, name) {
  try {
    return storage.getItem(name);
  } catch {
    return null; // a browser that keeps nothing
  }
}

function write(storage, name, value) {
  try {
    if (value === null) storage.removeItem(name);
    else storage.setItem(name, value);
  } catch {
    // As above: the choice lasts as long as the page.
  }
}

function loadPrefs() {
  try {
    return { ...DEFAULTS, ...JSON.parse(read(localStorage, PREFS) ?? "{}") };
  } catch {
    return { ...DEFAULTS };
  }
}

export const prefs = loadPrefs();

/** Takes choices over and keeps them. */
export function savePrefs(changes) {
  Object.assign(prefs, changes);
  write(localStorage, PREFS, JSON.stringify(prefs));
}

export function applyTheme() {
  if (prefs.theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = prefs.theme;
}

let apiKey = read(sessionStorage, KEY) ?? read(localStorage, KEY) ?? "";

/** The API key that requests carry; empty for none. */
export function currentKey() {
  return apiKey;
}

/** Whether the key stays after the browser is closed. */
export function isKeyRemembered() {
  return read(localStorage, KEY) !== null;
}

/** Takes a key: for this session, or, if it is to be remembered, until it is taken back. */
export function saveKey(key, { remember }) {
  apiKey = key;
  write(sessionStorage, KEY, key && !remember ? key : null);
  write(localStorage, KEY, key && remember ? key : null);
}
