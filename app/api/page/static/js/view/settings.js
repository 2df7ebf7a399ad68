// What a conversation is told, how its answers are shown, and the key.

import { readTools } from "../answer.js";
import { el, fill } from "../dom.js";
import { EXAMPLE_SCHEMA, EXAMPLE_TOOLS } from "../examples.js";
import { t } from "../i18n.js";
import { currentKey, prefs, saveKey, savePrefs } from "../prefs.js";
import { askForKey } from "./dialog.js";

const NUMBERS = [
  ["temperature", { min: 0, max: 2, step: 0.1 }],
  ["top_p", { min: 0.01, max: 1, step: 0.05 }],
  ["top_k", { min: 0, step: 1 }],
  ["min_p", { min: 0, max: 1, step: 0.01 }],
  ["max_tokens", { min: 1, step: 1 }],
  ["seed", { min: 0, step: 1 }],
];
const EMPTY = { max_tokens: "set.all", seed: "set.random" };

export function settingsPanel(chat, signal) {
  const box = el("div", { class: "settings" });
  const draw = () => fill(box, conversationPart(chat), samplingPart(chat), formPart(chat), toolsPart(chat), displayPart(chat), accessPart(chat));
  // Another conversation has other settings; those of this one are drawn by what changed them.
  for (const event of ["thread", "models"]) chat.addEventListener(event, () => box.contains(document.activeElement) || draw(), { signal });
  draw();
  return box;
}

function section(title, ...children) {
  return el("section", {}, el("h3", {}, title), children);
}

function labelled(label, control) {
  return el("label", { class: "field" }, el("span", {}, label), control);
}

function conversationPart(chat) {
  const system = el("textarea", { rows: 3, placeholder: t("set.system.hint"), data: { setting: "system" } });
  system.value = chat.current.settings.system;
  system.addEventListener("input", () => chat.change({ system: system.value }));
  return section(t("set.conversation"), labelled(t("set.system"), system));
}

function samplingPart(chat) {
  const { settings } = chat.current;
  const usual = chat.model()?.default_sampling ?? {};
  const fields = NUMBERS.map(([name, bounds]) => {
    const fallback = usual[name] ?? t(EMPTY[name] ?? "set.default");
    const input = el("input", { type: "number", ...bounds, placeholder: fallback, data: { setting: name } });
    input.value = settings[name] ?? "";
    input.addEventListener("input", () => {
      if (input.validity.badInput) return;
      chat.change({ [name]: input.value === "" ? null : Number(input.value) });
    });
    return labelled(t(`set.${name}`), input);
  });
  const stop = el("textarea", { rows: 2 });
  stop.value = settings.stop;
  stop.addEventListener("input", () => chat.change({ stop: stop.value }));
  return section(t("set.sampling"), el("div", { class: "grid" }, fields), labelled(t("set.stop"), stop));
}

function choice(name, label, values, current, onChange) {
  return el(
    "div",
    { class: "choice", role: "radiogroup", "aria-label": label },
    values.map(([value, text]) =>
      el(
        "label",
        {},
        el("input", { type: "radio", name, value, checked: value === current, on: { change: () => onChange(value) } }),
        el("span", {}, text),
      ),
    ),
  );
}

/** A text area for JSON that says when it is none, with an example to put into it. */
function jsonArea({ label, value, placeholder, example, read, onInput, setting }) {
  const problem = el("p", { class: "problem" });
  const area = el("textarea", { rows: 7, spellcheck: "false", class: "code-area", placeholder, "aria-label": label, data: { setting } });
  area.value = value;
  const check = () => {
    problem.textContent = "";
    if (area.value.trim()) {
      try {
        read(area.value);
      } catch (error) {
        problem.textContent = t("set.json.bad", { reason: error.message });
      }
    }
    area.setAttribute("aria-invalid", String(problem.textContent !== ""));
  };
  area.addEventListener("input", () => {
    check();
    onInput(area.value);
  });
  const insert = () => {
    area.value = example;
    area.dispatchEvent(new Event("input"));
  };
  check();
  return el(
    "div",
    { class: "json" },
    el("div", { class: "json-head" }, el("span", {}, label), el("button", { type: "button", class: "link", on: { click: insert } }, t("set.example"))),
    area,
    problem,
  );
}

function formPart(chat) {
  const { settings } = chat.current;
  const schema = jsonArea({
    label: t("set.schema"),
    value: settings.schema,
    placeholder: '{"type": "object"}',
    example: EXAMPLE_SCHEMA,
    read: JSON.parse,
    onInput: (text) => chat.change({ schema: text }),
    setting: "schema",
  });
  schema.hidden = settings.form !== "schema";
  const values = ["text", "json", "schema"].map((value) => [value, t(`set.form.${value}`)]);
  const form = choice("form", t("set.form"), values, settings.form, (value) => {
    chat.change({ form: value });
    schema.hidden = value !== "schema";
  });
  return section(t("set.form"), form, schema);
}

function toolsPart(chat) {
  const { settings } = chat.current;
  const tools = jsonArea({
    label: t("set.tools.hint"),
    value: settings.tools,
    placeholder: "[]",
    example: EXAMPLE_TOOLS,
    read: readTools,
    onInput: (text) => chat.change({ tools: text }),
    setting: "tools",
  });
  const values = ["auto", "required", "none"].map((value) => [value, t(`set.tool_choice.${value}`)]);
  const may = choice("tool_choice", t("set.tool_choice"), values, settings.tool_choice, (value) => chat.change({ tool_choice: value }));
  return section(t("set.tools"), tools, el("p", { class: "field-label" }, t("set.tool_choice")), may);
}

function displayPart(chat) {
  const counts = [null, 0, 3, 5, 10, 20];
  const alternatives = el(
    "select",
    {},
    counts.map((count) =>
      el("option", { value: String(count), selected: count === prefs.alternatives }, count === null ? t("set.alternatives.off") : String(count)),
    ),
  );
  alternatives.addEventListener("change", () => {
    savePrefs({ alternatives: alternatives.value === "null" ? null : Number(alternatives.value) });
  });
  const tint = el("input", { type: "checkbox", checked: prefs.tint, data: { setting: "tint" } });
  tint.addEventListener("change", () => {
    savePrefs({ tint: tint.checked });
    chat.dispatchEvent(new CustomEvent("settings"));
  });
  return section(t("set.display"), labelled(t("set.alternatives"), alternatives), el("label", { class: "check" }, tint, t("set.tint")));
}

function accessPart(chat) {
  const box = section(t("set.access"));
  const content = el("div", { class: "access" });
  const draw = () =>
    fill(
      content,
      el("p", {}, currentKey() ? t("key.set") : t("key.unset")),
      el(
        "div",
        { class: "access-buttons" },
        el("button", { type: "button", class: "button", on: { click: change } }, t("key.change")),
        currentKey() ? el("button", { type: "button", class: "button", on: { click: forget } }, t("key.forget")) : null,
      ),
    );
  const change = async () => {
    if (await askForKey({ wrong: false })) await chat.loadModels();
    draw();
  };
  const forget = () => {
    saveKey("", { remember: false });
    draw();
  };
  draw();
  box.append(content);
  return box;
}
