// Puts the page together, and together again when the language changes: the state stays.

import { Chat } from "./chat.js";
import { el, fill } from "./dom.js";
import { currentLanguage, setLanguage } from "./i18n.js";
import { applyTheme, currentKey, prefs, savePrefs } from "./prefs.js";
import { composer } from "./view/composer.js";
import { askForKey } from "./view/dialog.js";
import { header } from "./view/header.js";
import { panel } from "./view/panel.js";
import { sidebar } from "./view/sidebar.js";
import { thread } from "./view/thread.js";

const NOTICE_SECONDS = 8;

const chat = new Chat();
let mounted = null;

function mount() {
  mounted?.abort();
  mounted = new AbortController();
  const { signal } = mounted;
  const app = document.getElementById("app");
  const side = panel(chat, signal);
  const closeMenu = () => app.classList.remove("menu-open");
  const toggleMenu = () => app.classList.toggle(window.innerWidth > 800 ? "menu-hidden" : "menu-open");
  const switchLanguage = () => {
    savePrefs({ language: currentLanguage() === "zh" ? "en" : "zh" });
    setLanguage(prefs.language);
    mount();
  };
  const write = composer(chat, signal);
  fill(
    app,
    sidebar(chat, { close: closeMenu, language: switchLanguage }, signal),
    el("div", { class: "veil", on: { click: closeMenu } }),
    el("main", { class: "main" }, header(chat, { menu: toggleMenu, panel: side.toggle }, signal), thread(chat, signal), write.node),
    side.node,
  );
  closeMenu();
  side.restore();
  notices(app, signal);
  shortcuts({ write, side, closeMenu, app }, signal);
  if (matchMedia("(hover: hover)").matches) write.focus();
}

function notices(app, signal) {
  const box = el("div", { class: "toast", role: "alert", hidden: true });
  app.append(box);
  let timer = null;
  const show = ({ detail }) => {
    clearTimeout(timer);
    box.textContent = detail;
    box.hidden = false;
    timer = setTimeout(() => (box.hidden = true), NOTICE_SECONDS * 1000);
  };
  chat.addEventListener("notice", show, { signal });
}

/** Keys that work everywhere: Esc stops or closes, / writes, Alt with a letter for what is in the bars. */
function shortcuts({ write, side, closeMenu, app }, signal) {
  const letters = {
    KeyN: () => {
      chat.open(null);
      write.focus();
    },
    KeyS: () => side.toggle("settings"),
    KeyE: () => side.toggle("engine"),
  };
  const onKey = (event) => {
    if (document.querySelector("dialog[open]")) return;
    const isWriting = event.target.closest?.("input, textarea, select");
    if (event.key === "Escape") {
      if (chat.isRunning()) chat.stop();
      else if (app.classList.contains("menu-open")) closeMenu();
      else side.close();
    } else if (event.altKey && !event.ctrlKey && !event.metaKey && letters[event.code]) {
      event.preventDefault();
      letters[event.code]();
    } else if (event.key === "/" && !isWriting && !event.ctrlKey && !event.metaKey) {
      event.preventDefault();
      write.focus();
    }
  };
  document.addEventListener("keydown", onKey, { signal });
}

chat.addEventListener("key", async () => {
  if (await askForKey({ wrong: currentKey() !== "" })) await chat.loadModels();
});
// What came so far is kept when the page goes, as far as the browser lets it.
window.addEventListener("pagehide", () => {
  for (const id of chat.running.keys()) chat.save(chat.conversations.get(id));
});

setLanguage(prefs.language);
applyTheme();
const started = chat.start();
await Promise.race([started, new Promise((resolve) => chat.addEventListener("list", resolve, { once: true }))]);
mount();
