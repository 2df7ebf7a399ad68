// Sends a request to the server and shows what comes back, streams as they come.

import { request } from "../api.js";
import { el, fill } from "../dom.js";
import { seconds, t } from "../i18n.js";

const MOST_SHOWN = 200_000; // characters of an answer

/** A form for one operation. */
export function tryView(operation, content) {
  const examples = Object.values(content?.examples ?? {});
  const area = content ? el("textarea", { class: "code-area", rows: 9, spellcheck: "false", "aria-label": t("docs.body") }) : null;
  const put = (index) => {
    area.value = JSON.stringify(examples[index].value, null, 2);
  };
  const choose = el("select", { "aria-label": t("set.example") }, examples.map((each, index) => el("option", { value: index }, each.summary ?? index + 1)));
  choose.addEventListener("change", () => put(Number(choose.value)));
  if (examples.length) put(0);
  const fields = (operation.parameters ?? [])
    .filter((each) => each.in === "path" || each.in === "query")
    .map((each) => ({ ...each, input: el("input", { type: "text", placeholder: each.name, "aria-label": each.name }) }));
  const answer = el("div", { class: "try-answer", "aria-live": "polite" });
  const button = el("button", { type: "button", class: "button primary" }, t("send"));
  let controller = null;
  button.addEventListener("click", async () => {
    if (controller) return controller.abort();
    controller = new AbortController();
    button.textContent = t("stop");
    await send(operation, fields, area?.value ?? null, answer, controller.signal);
    controller = null;
    button.textContent = t("send");
    return undefined;
  });
  return el(
    "div",
    { class: "try" },
    fields.length ? el("div", { class: "try-fields" }, fields.map(({ input }) => input)) : null,
    examples.length > 1 ? choose : null,
    area,
    button,
    answer,
  );
}

function target(operation, fields) {
  let path = operation.path.replace(/^\//, "");
  const query = new URLSearchParams();
  for (const { name, in: place, input } of fields) {
    if (place === "path") path = path.replace(`{${name}}`, encodeURIComponent(input.value)).replace(`{${name}:path}`, input.value);
    else if (input.value) query.set(name, input.value);
  }
  return query.size ? `${path}?${query}` : path || "./";
}

async function send(operation, fields, text, answer, signal) {
  const started = performance.now();
  const took = () => seconds((performance.now() - started) / 1000);
  const out = el("pre", {}, "");
  const line = el("p", { class: "try-line" }, "…");
  fill(answer, line, out);
  try {
    const body = text === null ? null : JSON.parse(text);
    const response = await request(target(operation, fields), { method: operation.method.toUpperCase(), body, signal });
    line.textContent = `${response.status} · ${response.headers.get("content-type") ?? ""}`;
    await show(response, out);
    line.textContent += ` · ${took()}`;
  } catch (error) {
    if (signal.aborted) line.textContent = t("docs.stopped");
    else fill(line, el("span", { class: "problem" }, error.status ? `${error.status} · ${error.message}` : error.message));
  }
}

async function show(response, out) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) break;
    text += value;
    if (text.length <= MOST_SHOWN) out.append(value);
  }
  if ((response.headers.get("content-type") ?? "").startsWith("application/json") && text.length <= MOST_SHOWN) {
    out.textContent = JSON.stringify(JSON.parse(text), null, 2);
  }
}
