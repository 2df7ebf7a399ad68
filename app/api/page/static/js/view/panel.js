// The panel at the side: settings or the engine, one at a time.

import { el, fill, iconButton } from "../dom.js";
import { t } from "../i18n.js";
import { prefs, savePrefs } from "../prefs.js";
import { enginePanel } from "./engine.js";
import { settingsPanel } from "./settings.js";

const PANELS = { settings: settingsPanel, engine: enginePanel };

/** @returns {{node: HTMLElement, toggle: function(string): void, close: function(): boolean}} */
export function panel(chat, signal) {
  const node = el("aside", { class: "panel", hidden: true });
  let shown = null;
  let closing = null; // ends what the shown panel listens to

  function show(name) {
    closing?.abort();
    closing = name === null ? null : new AbortController();
    shown = name;
    savePrefs({ panel: name });
    node.hidden = name === null;
    for (const button of document.querySelectorAll("[data-panel]")) {
      button.setAttribute("aria-expanded", String(button.dataset.panel === name));
    }
    if (name === null) return node.replaceChildren();
    node.setAttribute("aria-label", t(name));
    const head = el("div", { class: "panel-head" }, el("h2", {}, t(name)), iconButton("close", t("close"), () => show(null)));
    return fill(node, head, el("div", { class: "panel-body" }, PANELS[name](chat, closing.signal)));
  }

  signal.addEventListener("abort", () => closing?.abort());
  return {
    node,
    restore: () => show(window.innerWidth > 1100 && prefs.panel in PANELS ? prefs.panel : null),
    toggle: (name) => show(shown === name ? null : name),
    close: () => {
      const was = shown !== null;
      if (was) show(null);
      return was;
    },
  };
}
