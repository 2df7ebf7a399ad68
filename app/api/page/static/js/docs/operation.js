// One operation: what it takes, what it answers, and a place to try it.

import { el } from "../dom.js";
import { t } from "../i18n.js";
import { MarkdownView } from "../markdown.js";
import { schemaView, typeName } from "./schema.js";
import { tryView } from "./try.js";

/** An element that is filled when it is opened for the first time. */
export function operationView(api, operation) {
  const { method, path, summary = "" } = operation;
  const body = el("div", { class: "operation-body" });
  const details = el(
    "details",
    {
      class: "operation",
      id: `${method}-${path}`,
      data: { words: `${method} ${path} ${summary} ${operation.description ?? ""}`.toLowerCase() },
    },
    el("summary", {}, el("span", { class: `method ${method}` }, method.toUpperCase()), el("code", {}, path), el("span", { class: "summary" }, summary)),
    body,
  );
  details.addEventListener(
    "toggle",
    () => {
      if (details.open && body.childElementCount === 0) body.append(...parts(api, operation));
    },
  );
  return details;
}

function parts(api, operation) {
  const list = [];
  if (operation.description) list.push(markdown(operation.description));
  if (operation.parameters?.length) list.push(heading(t("docs.parameters")), parameters(operation.parameters));
  const content = operation.requestBody?.content?.["application/json"];
  if (content) list.push(heading(t("docs.body")), schemaView(api, content.schema));
  list.push(heading(t("docs.answers")), ...answers(api, operation.responses));
  list.push(heading(t("docs.try")), tryView(operation, content));
  return list;
}

function heading(text) {
  return el("h3", {}, text);
}

function markdown(source) {
  const view = new MarkdownView({ breaks: false });
  view.draw(source, [], []);
  return view.node;
}

function parameters(list) {
  const row = (each) =>
    el(
      "tr",
      {},
      el("td", {}, el("code", {}, each.name), each.required ? el("span", { class: "required" }, "*") : null),
      el("td", {}, each.in),
      el("td", {}, typeName(each.schema ?? {})),
      el("td", {}, each.description ?? ""),
    );
  return el("div", { class: "table" }, el("table", {}, el("tbody", {}, list.map(row))));
}

function answers(api, responses) {
  return Object.entries(responses).map(([status, response]) => {
    const contents = Object.entries(response.content ?? {});
    const line = [el("b", { class: `status s${status[0]}` }, status), el("span", {}, response.description ?? "")];
    if (contents.length === 0) return el("div", { class: "answer" }, line);
    return el(
      "details",
      { class: "answer" },
      el("summary", {}, line),
      contents.map(([type, content]) => [el("p", { class: "content-type" }, type), content.schema ? schemaView(api, content.schema) : null]),
    );
  });
}
