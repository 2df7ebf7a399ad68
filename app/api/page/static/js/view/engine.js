// The live view of the engine: what it computes, who holds its memory, how fast it is.

import { el, fill, svg } from "../dom.js";
import { number, t } from "../i18n.js";
import { follow, Rates } from "../live.js";

const WIDTH = 300;
const HEIGHT = 64;
const COLOURS = 6;

export function enginePanel(chat, signal) {
  const box = el("div", { class: "engine" });
  const status = el("p", { class: "engine-status", role: "status" }, t("eng.connecting"));
  const rates = new Rates();
  const onView = (view) => {
    rates.add(view);
    status.textContent = "";
    fill(box, head(view), speed(rates), memory(view), batch(view), prefix(view, rates), facts(view));
  };
  const onLost = (error) => {
    status.textContent = error?.status ? error.message : t("eng.lost");
  };
  let closing = null;
  let model = null;
  const start = () => {
    closing?.abort();
    model = chat.model()?.id ?? null;
    // Nothing is asked of the server for a page that nobody sees.
    if (document.hidden || signal.aborted) return;
    closing = new AbortController();
    follow(model, onView, onLost, closing.signal);
  };
  document.addEventListener("visibilitychange", start, { signal });
  chat.addEventListener("models", start, { signal });
  chat.addEventListener("settings", () => chat.model()?.id !== model && start(), { signal });
  signal.addEventListener("abort", () => closing?.abort());
  start();
  return [status, box];
}

function head(view) {
  return el(
    "div",
    { class: "tiles" },
    tile(t("eng.running"), number(view.running)),
    tile(t("eng.waiting"), number(view.waiting)),
    tile(t(`eng.state.${view.state}`), "", `state ${view.state}`),
  );
}

function tile(label, value, extra = "") {
  return el("div", { class: `tile ${extra}` }, el("b", {}, value), el("span", {}, label));
}

function part(title, note, ...children) {
  return el("section", {}, el("div", { class: "part-head" }, el("h3", {}, title), el("span", {}, note)), children);
}

// -- speed ---------------------------------------------------------------------------------------------------------

function speed(rates) {
  const last = (list) => number(list.at(-1) ?? 0);
  return part(
    t("eng.rate"),
    "",
    el(
      "div",
      { class: "legend" },
      el("span", {}, el("i", { class: "swatch decode" }), el("b", { data: { rate: "generated" } }, last(rates.generated)), " ", t("eng.generated")),
      el("span", {}, el("i", { class: "swatch prefill" }), el("b", {}, last(rates.read)), " ", t("eng.read")),
    ),
    el("div", { class: "chart" }, chart(rates)),
  );
}

function chart(rates) {
  const top = Math.max(10, ...rates.generated, ...rates.read) * 1.08;
  const points = (list) =>
    list.map((value, index) => [WIDTH - (list.length - 1 - index) * (WIDTH / 59), HEIGHT - (value / top) * HEIGHT]);
  const line = (list) => points(list).map(([x, y], index) => `${index ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");
  const area = (list) => (list.length ? `${line(list)}L${WIDTH} ${HEIGHT}L${points(list)[0][0].toFixed(1)} ${HEIGHT}Z` : "");
  return svg(
    "svg",
    { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true" },
    svg("path", { d: area(rates.generated), class: "area decode" }),
    svg("path", { d: line(rates.read), class: "line prefill" }),
    svg("path", { d: line(rates.generated), class: "line decode" }),
  );
}

// -- memory --------------------------------------------------------------------------------------------------------

function memory(view) {
  const { kv } = view;
  const own = view.requests.map((each) => ({
    blocks: each.blocks - each.shared_blocks,
    label: ownerName(each),
    colour: `owner-${each.number % COLOURS}`,
  }));
  if (view.others) own.push({ blocks: view.others.blocks, label: t("eng.others"), colour: "others" });
  const held = own.reduce((sum, { blocks }) => sum + blocks, 0);
  const parts = [
    ...own,
    { blocks: Math.max(0, kv.held - held), label: t("eng.kv.shared"), colour: "shared" },
    { blocks: kv.cached, label: t("eng.kv.cached"), colour: "cached" },
    { blocks: Math.max(0, kv.total - kv.held - kv.cached), label: t("eng.kv.free"), colour: "free" },
  ].filter(({ blocks, colour }) => blocks > 0 || colour === "cached" || colour === "free");
  return part(
    t("eng.kv"),
    t("eng.kv.of", { used: number(kv.held), total: number(kv.total) }),
    el(
      "div",
      { class: "blocks", "aria-hidden": "true" },
      parts.map(({ blocks, label, colour }) =>
        el("span", { class: `segment ${colour}`, style: { "flex-grow": String(blocks) }, title: `${label}: ${number(blocks)}` }),
      ),
    ),
    el(
      "ul",
      { class: "owners" },
      parts.map(({ blocks, label, colour }) =>
        el("li", {}, el("i", { class: `swatch ${colour}` }), el("span", {}, label), el("b", {}, number(blocks))),
      ),
    ),
  );
}

function ownerName(request) {
  const name = t("eng.owner", { number: request.number });
  return request.yours ? `${name} (${t("eng.yours")})` : name;
}

// -- batch ---------------------------------------------------------------------------------------------------------

function batch(view) {
  const rows = view.requests.map((each) =>
    el(
      "li",
      {},
      el("i", { class: `swatch owner-${each.number % COLOURS}` }),
      el("span", {}, ownerName(each)),
      el(
        "span",
        { class: "row-note" },
        each.status === "queued"
          ? t("eng.queued")
          : t("eng.row", { prompt: number(each.prompt_tokens), generated: number(each.generated_tokens) }),
      ),
    ),
  );
  if (view.others) {
    rows.push(el("li", {}, el("i", { class: "swatch others" }), el("span", {}, t("eng.others")), el("span", { class: "row-note" }, number(view.others.requests))));
  }
  return part(t("eng.batch"), "", rows.length ? el("ul", { class: "rows" }, rows) : el("p", { class: "quiet" }, t("eng.idle")));
}

function prefix(view, rates) {
  const share = rates.hitShare();
  const note = share === null ? t("eng.hit.none") : t("eng.hit.rate", { rate: number(100 * share) });
  return part(
    t("eng.hit"),
    note,
    el("div", { class: "meter wide" }, el("span", { style: { width: `${100 * (share ?? 0)}%` } })),
  );
}

function facts(view) {
  const { info, kv, totals } = view;
  const rows = [
    [t("eng.model"), view.model],
    info ? [t("eng.context"), t("eng.tokens", { count: number(info.max_model_len) })] : null,
    info ? [t("eng.weights"), info.weights] : null,
    info ? [t("eng.cache"), info.kv_cache_dtype] : null,
    info ? [t("eng.kernels"), `${info.kernels}, ${info.device}`] : null,
    [t("eng.blocksize"), t("eng.tokens", { count: number(kv.block_size) })],
    [t("eng.steps"), number(totals.steps)],
    [t("eng.preemptions"), number(totals.preemptions)],
  ];
  return part(t("eng.model"), "", el("dl", { class: "facts" }, rows.filter(Boolean).map(([name, value]) => [el("dt", {}, name), el("dd", {}, value)])));
}
