// The list of conversations, and what is chosen once for all of them.

import { address } from "../api.js";
import { el, fill, icon, iconButton } from "../dom.js";
import { currentLanguage, t } from "../i18n.js";
import { applyTheme, prefs, savePrefs } from "../prefs.js";
import { ask } from "./dialog.js";

const THEMES = ["auto", "light", "dark"];
const SIGNS = { auto: "auto", light: "sun", dark: "moon" };

/** @param {object} on `close()`, `language()` */
export function sidebar(chat, on, signal) {
  const list = el("ul", { class: "conversations" });
  const note = el("p", { class: "sidebar-note" });
  const draw = () => {
    const conversations = chat.list();
    fill(list, conversations.map((each) => entry(chat, each, on)));
    note.hidden = conversations.length > 0 && chat.database.lasting;
    note.textContent = chat.database.lasting ? t("conversations.none") : t("conversations.unsaved");
  };
  for (const event of ["list", "status"]) chat.addEventListener(event, draw, { signal });
  draw();

  const start = el(
    "button",
    {
      type: "button",
      class: "new",
      on: {
        click: () => {
          chat.open(null);
          on.close();
        },
      },
    },
    icon("plus"),
    t("new"),
  );
  return el(
    "nav",
    { class: "sidebar", "aria-label": t("conversations") },
    el("div", { class: "brand" }, el("span", { class: "brand-name" }, "tuili"), el("span", { lang: "zh" }, "推理")),
    start,
    el("div", { class: "sidebar-scroll" }, list, note),
    el("div", { class: "sidebar-foot" }, docsLink(), languageButton(on), themeButton()),
  );
}

function entry(chat, conversation, on) {
  const { id, title } = conversation;
  const isCurrent = id === chat.current.id;
  const open = el(
    "button",
    {
      type: "button",
      class: "conversation",
      "aria-current": isCurrent ? "true" : null,
      title,
      on: {
        click: () => {
          chat.open(id);
          on.close();
        },
      },
    },
    el("span", { class: "conversation-title" }, title || t("new")),
    chat.running.has(id) ? el("span", { class: "spinner", "aria-hidden": "true" }) : null,
  );
  const rename = iconButton("edit", t("rename"), async () => {
    const name = await ask({ title: t("rename"), value: title, confirm: t("rename") });
    if (name !== null) chat.rename(id, name);
  });
  const remove = iconButton("trash", t("delete"), async () => {
    if ((await ask({ title: t("delete.confirm", { title }), confirm: t("delete"), danger: true })) !== null) {
      await chat.remove(id);
    }
  });
  return el("li", { class: isCurrent ? "entry current" : "entry" }, open, el("span", { class: "entry-actions" }, rename, remove));
}

function docsLink() {
  return el("a", { class: "foot-link", href: address("docs") }, icon("book"), t("docs"));
}

function languageButton(on) {
  return el(
    "button",
    {
      type: "button",
      class: "foot-link",
      lang: currentLanguage() === "zh" ? "en" : "zh",
      "aria-label": t("language.switch"),
      on: { click: on.language },
    },
    t("language.other"),
  );
}

function themeButton() {
  const button = iconButton("auto", "", () => {
    savePrefs({ theme: THEMES[(THEMES.indexOf(prefs.theme) + 1) % THEMES.length] });
    applyTheme();
    draw();
  });
  const draw = () => {
    const label = t("theme", { theme: t(`theme.${prefs.theme}`) });
    button.title = label;
    button.setAttribute("aria-label", label);
    fill(button, icon(SIGNS[prefs.theme] ?? "auto"));
  };
  draw();
  return button;
}
