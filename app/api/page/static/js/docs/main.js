// The API's page: what openapi.json says, to read and to try.

import { address, ApiError, getJson } from "../api.js";
import { el, fill, icon } from "../dom.js";
import { currentLanguage, setLanguage, t } from "../i18n.js";
import { MarkdownView } from "../markdown.js";
import { applyTheme, currentKey, prefs, savePrefs } from "../prefs.js";
import { askForKey } from "../view/dialog.js";
import { operationView } from "./operation.js";

const METHODS = ["get", "post", "put", "patch", "delete"];
const root = document.getElementById("docs");
let api = null;

async function load() {
  try {
    api = await getJson("openapi.json");
    draw();
  } catch (error) {
    const needsKey = error instanceof ApiError && error.status === 401;
    fill(root, el("p", { class: "docs-problem" }, needsKey ? t("key.title") : error.message || t("error.unreachable")));
    if (needsKey && (await askForKey({ wrong: currentKey() !== "" }))) await load();
  }
}

/** Operations by their first tag, in the document's order. */
function operations() {
  const groups = new Map();
  for (const [path, methods] of Object.entries(api.paths)) {
    for (const method of METHODS) {
      const operation = methods[method];
      if (!operation) continue;
      const tag = operation.tags?.[0] ?? "";
      if (!groups.has(tag)) groups.set(tag, []);
      groups.get(tag).push({ path, method, ...operation });
    }
  }
  return groups;
}

function draw() {
  const groups = [...operations()];
  const filter = el("input", { type: "search", placeholder: t("docs.filter"), "aria-label": t("docs.filter") });
  const sections = groups.map(([tag, list]) =>
    el("section", { id: `tag-${tag}` }, el("h2", {}, tag), list.map((each) => operationView(api, each))),
  );
  filter.addEventListener("input", () => {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const section of sections) {
      const shown = [...section.querySelectorAll(".operation")].filter((each) => {
        each.hidden = !words.every((word) => each.dataset.words.includes(word));
        return !each.hidden;
      });
      section.hidden = shown.length === 0;
    }
  });
  fill(
    root,
    el(
      "nav",
      { class: "docs-nav", "aria-label": t("docs") },
      el("a", { class: "brand", href: address("./") }, el("span", { class: "brand-name" }, "tuili"), el("span", { lang: "zh" }, "推理")),
      filter,
      el("ul", {}, groups.map(([tag]) => el("li", {}, el("a", { href: `#tag-${tag}` }, tag)))),
      el("div", { class: "docs-foot" }, chatLink(), languageButton(), keyButton()),
    ),
    el("main", {}, head(), sections),
  );
}

function head() {
  const text = new MarkdownView({ breaks: false });
  text.draw(api.info.description ?? "", [], []);
  return el(
    "header",
    {},
    el("h1", {}, `${api.info.title} ${api.info.version}`),
    text.node,
    el("p", {}, el("a", { href: address("openapi.json") }, "openapi.json")),
  );
}

function chatLink() {
  return el("a", { class: "link-button", href: address("./") }, icon("left"), t("docs.chat"));
}

function languageButton() {
  const change = () => {
    savePrefs({ language: currentLanguage() === "zh" ? "en" : "zh" });
    setLanguage(prefs.language);
    draw();
  };
  return el("button", { type: "button", class: "link-button", "aria-label": t("language.switch"), on: { click: change } }, t("language.other"));
}

function keyButton() {
  const change = () => askForKey({ wrong: false });
  return el("button", { type: "button", class: "link-button", on: { click: change } }, icon("key"), t("key.label"));
}

setLanguage(prefs.language);
applyTheme();
await load();
