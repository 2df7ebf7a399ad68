// Where the time of an answer went: what the server says of its phases, and what was measured here.

import { el } from "../dom.js";
import { number, seconds, t } from "../i18n.js";

const PHASES = ["queue", "prefill", "decode"];

/** Tokens a second while the answer was written; null where that cannot be told. */
function rate(turn) {
  const tokens = turn.usage?.latest ?? turn.tokens.length;
  const { timing, clock } = turn;
  const span = timing?.decode ?? (clock?.first != null ? clock.last - clock.first : 0);
  return tokens > 1 && span > 0 ? (tokens - 1) / span : null;
}

/** One line that opens to the whole timeline; null while there is nothing to say. */
export function timeline(turn) {
  const perSecond = rate(turn);
  const count = turn.usage?.completion ?? turn.tokens.length;
  if (!count) return null;
  const { timing, usage } = turn;
  const line = [
    timing ? bar(timing) : null,
    timing ? seconds(timing.total) : null,
    t("timeline.tokens", { count: number(count) }),
    perSecond ? t("timeline.rate", { rate: number(perSecond, perSecond < 10 ? 1 : 0) }) : null,
  ];
  const summary = line.filter(Boolean).map((part) => (part instanceof Node ? part : el("span", {}, part)));
  if (!timing) return el("div", { class: "timeline plain" }, summary);
  return el(
    "details",
    { class: "timeline" },
    el("summary", { title: t("timeline") }, summary),
    el("dl", {}, rows(turn, timing, usage)),
  );
}

function rest(timing) {
  const known = PHASES.reduce((sum, name) => sum + (timing[name] ?? 0), 0);
  return Math.max(0, timing.total - known);
}

function bar(timing) {
  const parts = [...PHASES.map((name) => [name, timing[name] ?? 0]), ["rest", rest(timing)]];
  const whole = parts.reduce((sum, [, value]) => sum + value, 0) || 1;
  return el(
    "span",
    { class: "phases", "aria-hidden": "true" },
    parts.map(([name, value]) => el("span", { class: `phase ${name}`, style: { "flex-grow": String(value / whole) } })),
  );
}

function rows(turn, timing, usage) {
  const entry = (name, label, value) => [
    el("dt", {}, name ? el("span", { class: `swatch ${name}` }) : null, label),
    el("dd", {}, value),
  ];
  return [
    PHASES.filter((name) => timing[name] !== null).map((name) => entry(name, t(`timeline.${name}`), seconds(timing[name]))),
    entry("rest", t("timeline.rest"), seconds(rest(timing))),
    entry(null, t("timeline.total"), seconds(timing.total)),
    turn.clock?.first ? entry(null, t("timeline.first"), seconds(turn.clock.first)) : [],
    usage
      ? entry(null, t("timeline.prompt"), t("timeline.cached", { cached: number(usage.cached), prompt: number(usage.prompt) }))
      : [],
  ];
}
