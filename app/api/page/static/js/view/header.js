// The bar on top: conversations, model, panels.

import { el, fill, iconButton } from "../dom.js";
import { t } from "../i18n.js";

/** @param {object} on what the buttons do: `menu()`, `panel(name)` */
export function header(chat, on, signal) {
  const model = el("select", { class: "model", "aria-label": t("model") });
  model.addEventListener("change", () => chat.change({ model: model.value }));
  const title = el("div", { class: "bar-title" });

  const draw = () => {
    const models = chat.models;
    fill(
      model,
      models.length === 0
        ? el("option", { value: "" }, t("model.none"))
        : models.map(({ id }) => el("option", { value: id, selected: id === chat.model()?.id }, id)),
    );
    model.disabled = models.length < 2;
    title.textContent = chat.current.title;
  };
  for (const event of ["models", "thread", "settings", "list"]) chat.addEventListener(event, draw, { signal });
  draw();

  return el(
    "header",
    { class: "bar" },
    iconButton("menu", t("menu"), on.menu, { class: "icon-button menu-button" }),
    el("div", { class: "model-box" }, model),
    title,
    iconButton("pulse", t("engine"), () => on.panel("engine"), { data: { panel: "engine" } }),
    iconButton("sliders", t("settings"), () => on.panel("settings"), { data: { panel: "settings" } }),
  );
}
