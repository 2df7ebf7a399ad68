// Questions that have to be answered before all else.

import { el } from "../dom.js";
import { t } from "../i18n.js";
import { isKeyRemembered, saveKey } from "../prefs.js";

function show(dialog) {
  document.body.append(dialog);
  dialog.addEventListener("close", () => dialog.remove());
  dialog.showModal();
}

function buttons(dialog, confirm, danger) {
  return el(
    "div",
    { class: "dialog-buttons" },
    el("button", { type: "button", class: "button", on: { click: () => dialog.close("") } }, t("cancel")),
    el("button", { type: "submit", class: danger ? "button danger" : "button primary" }, confirm),
  );
}

/**
 * Asks for a confirmation, or for a line of text where there is a `value`.
 *
 * @returns {Promise<string|null>} the text, or null when it was cancelled
 */
export function ask({ title, value = null, confirm, danger = false }) {
  return new Promise((resolve) => {
    const dialog = el("dialog", { class: "dialog", "aria-label": title });
    const input = value === null ? null : el("input", { type: "text", value, "aria-label": title });
    const form = el("form", { method: "dialog" }, el("h2", {}, title), input, buttons(dialog, confirm, danger));
    let answer = null;
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      answer = input === null ? "" : input.value;
      dialog.close("ok");
    });
    dialog.addEventListener("close", () => resolve(answer));
    dialog.append(form);
    show(dialog);
    input?.select();
  });
}

let isAskingForKey = false;

/**
 * Asks for the API key and keeps it.
 *
 * @returns {Promise<boolean>} whether there is another key now
 */
export function askForKey({ wrong }) {
  if (isAskingForKey) return Promise.resolve(false);
  isAskingForKey = true;
  return new Promise((resolve) => {
    const dialog = el("dialog", { class: "dialog", "aria-label": t("key.title") });
    const input = el("input", {
      type: "password",
      autocomplete: "off",
      spellcheck: "false",
      required: true,
      "aria-label": t("key.label"),
      placeholder: t("key.label"),
    });
    const remember = el("input", { type: "checkbox", checked: isKeyRemembered() });
    const form = el(
      "form",
      { method: "dialog" },
      el("h2", {}, t("key.title")),
      el("p", {}, t("key.text")),
      wrong ? el("p", { class: "problem", role: "alert" }, t("key.wrong")) : null,
      input,
      el("label", { class: "check" }, remember, t("key.remember")),
      buttons(dialog, t("key.save"), false),
    );
    let given = false;
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      saveKey(input.value.trim(), { remember: remember.checked });
      given = true;
      dialog.close("ok");
    });
    dialog.addEventListener("close", () => {
      isAskingForKey = false;
      resolve(given);
    });
    dialog.append(form);
    show(dialog);
  });
}
