// Where questions are written.

import { el, iconButton } from "../dom.js";
import { t } from "../i18n.js";

/** @returns {{node: HTMLElement, focus: function(): void, fill: function(string): void}} */
export function composer(chat, signal) {
  const area = el("textarea", { rows: 1, "aria-label": t("ask"), placeholder: t("ask"), enterkeyhint: "send" });
  const send = iconButton("send", t("send"), submit, { class: "icon-button send", data: { action: "send" } });
  const stop = iconButton("stop", t("stop"), () => chat.stop(), { class: "icon-button send", data: { action: "stop" } });

  function submit() {
    if (chat.isRunning() || !area.value.trim()) return;
    const text = area.value;
    area.value = "";
    resize();
    chat.send(text);
  }

  function resize() {
    area.style.height = "auto";
    if (area.value) area.style.height = `${Math.min(area.scrollHeight, window.innerHeight * 0.4)}px`;
    send.disabled = !area.value.trim();
  }

  area.addEventListener("input", resize);
  area.addEventListener("keydown", (event) => {
    // While a method of input composes characters, Enter is its own.
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    submit();
  });

  const draw = () => {
    send.hidden = chat.isRunning();
    stop.hidden = !chat.isRunning();
  };
  for (const event of ["status", "thread"]) chat.addEventListener(event, draw, { signal });
  draw();
  send.disabled = true;

  return {
    node: el("div", { class: "composer" }, el("div", { class: "composer-box" }, area, send, stop), el("p", { class: "keys" }, t("keys"))),
    focus: () => area.focus(),
    fill: (text) => {
      area.value = text;
      resize();
      area.focus();
    },
  };
}
