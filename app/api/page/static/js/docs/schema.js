// A JSON Schema as a tree that opens where somebody looks: what refers to itself never ends.

import { el } from "../dom.js";
import { MarkdownView } from "../markdown.js";

function resolved(api, schema) {
  const name = schema.$ref?.match(/^#\/components\/schemas\/(.+)$/)?.[1];
  return name ? { title: name, ...api.components.schemas[name] } : schema;
}

function refName(schema) {
  return schema.$ref?.split("/").at(-1) ?? null;
}

/** What may stand in a schema's place, null aside. */
function variants(schema) {
  return (schema.anyOf ?? schema.oneOf ?? schema.allOf ?? []).filter((each) => each.type !== "null");
}

/** A short name of what a schema describes. */
export function typeName(schema) {
  if (schema.$ref) return refName(schema);
  if (schema.const !== undefined) return JSON.stringify(schema.const);
  if (schema.enum) return schema.enum.map((each) => JSON.stringify(each)).join(" | ");
  const several = variants(schema);
  if (several.length) return [...new Set(several.map(typeName))].join(" | ");
  if (schema.type === "array") return schema.items ? `${typeName(schema.items)}[]` : "array";
  return [schema.type ?? "any"].flat().join(" | ");
}

/** Schemas with fields of their own that a schema consists of. */
function parts(api, schema) {
  const whole = resolved(api, schema);
  if (whole.properties) return [whole];
  if (whole.type === "array" && whole.items) return parts(api, whole.items);
  if (whole.contentSchema) return parts(api, whole.contentSchema);
  return variants(whole).flatMap((each) => parts(api, each));
}

/** The fields of a schema. */
export function schemaView(api, schema) {
  const found = parts(api, schema);
  if (found.length === 0) return el("p", { class: "type" }, typeName(schema));
  return el("div", { class: "schema" }, found.map((part) => fields(api, part, found.length > 1)));
}

function fields(api, schema, named) {
  const required = new Set(schema.required ?? []);
  // What has to be there first, else in the schema's own order.
  const all = Object.entries(schema.properties);
  const sorted = [...all.filter(([name]) => required.has(name)), ...all.filter(([name]) => !required.has(name))];
  const rows = sorted.map(([name, field]) => fieldView(api, name, field, required.has(name)));
  return [named ? el("p", { class: "schema-name" }, schema.title ?? "") : null, el("ul", { class: "fields" }, rows)];
}

function fieldView(api, name, field, isRequired) {
  const text = new MarkdownView({ breaks: false });
  text.draw(field.description ?? "", [], []);
  const line = [
    el("code", { class: "name" }, name),
    isRequired ? el("span", { class: "required", title: "required" }, "*") : null,
    el("span", { class: "type" }, typeName(field)),
    bounds(field),
    text.node,
  ];
  if (parts(api, field).length === 0) return el("li", {}, line);
  const inner = el("details", {}, el("summary", {}, line));
  inner.addEventListener("toggle", () => {
    if (inner.open && inner.childElementCount === 1) inner.append(schemaView(api, field));
  });
  return el("li", {}, inner);
}

const BOUNDS = { minimum: "≥", exclusiveMinimum: ">", maximum: "≤", exclusiveMaximum: "<", maxLength: "≤", maxItems: "≤" };

function bounds(field) {
  const each = [field, ...variants(field)];
  const words = Object.entries(BOUNDS).flatMap(([key, sign]) => each.filter((one) => one[key] !== undefined).map((one) => `${sign} ${one[key]}`));
  return words.length ? el("span", { class: "type" }, words.join(", ")) : null;
}
