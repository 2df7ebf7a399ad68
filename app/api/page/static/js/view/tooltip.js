// What a token's neighbours in probability were: shown where the pointer, or the keyboard, is on a token.

import { el, fill } from "../dom.js";
import { number, t } from "../i18n.js";
import { probability } from "../tokens.js";

const MARGIN = 8;

/**
 * One tooltip for all tokens below an element.
 *
 * @param {function(Element): object|null} tokenOf the kept token of an element that carries its index
 */
export function tokenTooltip(root, tokenOf, signal) {
  const box = el("div", { class: "tooltip", role: "tooltip", id: "token-tooltip", hidden: true });
  let shown = null;

  function show(target) {
    const token = tokenOf(target);
    if (token === null) return hide();
    shown?.classList.remove("inspected");
    shown = target;
    shown.classList.add("inspected");
    fill(box, content(token));
    box.hidden = false;
    placeBeside(box, target);
    return undefined;
  }

  function hide() {
    shown?.classList.remove("inspected");
    shown = null;
    box.hidden = true;
  }

  const onToken = (event) => event.target.closest?.(".token");
  root.addEventListener("pointerover", (event) => {
    const target = onToken(event);
    if (target) show(target);
    else if (!box.contains(event.target)) hide();
  });
  root.addEventListener("pointerleave", hide);
  root.addEventListener("click", (event) => (onToken(event) ? show(onToken(event)) : hide()));
  root.addEventListener("scroll", hide, { passive: true, capture: true });
  root.addEventListener("keydown", (event) => walk(event, shown, show, hide));
  signal.addEventListener("abort", () => box.remove());
  document.body.append(box);
}

/** Arrows go from token to token of the answer that has the focus. */
function walk(event, shown, show, hide) {
  const answer = event.target.closest?.(".markdown-frame");
  if (!answer || event.target !== answer) return;
  if (event.key === "Escape") {
    if (shown) event.stopPropagation();
    hide();
  }
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (!step) return;
  const tokens = [...answer.querySelectorAll(".token")];
  const at = tokens.indexOf(shown);
  const next = tokens[at < 0 ? 0 : Math.min(tokens.length - 1, Math.max(0, at + step))];
  if (!next) return;
  event.preventDefault();
  next.scrollIntoView({ block: "nearest" });
  show(next);
}

function content(token) {
  const rows = token.a.map(([text, logprob]) => row(text, logprob, text === token.t));
  // The token that was drawn need not be among the likeliest.
  if (!token.a.some(([text]) => text === token.t)) rows.unshift(row(token.t, token.p, true));
  return [rows, token.a.length === 0 ? el("p", { class: "tooltip-note" }, t("token.none")) : null];
}

function row(text, logprob, chosen) {
  const p = probability(logprob);
  return el(
    "div",
    { class: chosen ? "alternative chosen" : "alternative", title: chosen ? t("token.chosen") : null },
    el("code", {}, visible(text)),
    el("span", { class: "meter" }, el("span", { style: { width: `${100 * p}%` } })),
    el("span", { class: "percent" }, percent(p)),
  );
}

function percent(p) {
  if (p > 0 && p < 0.001) return "< 0.1 %";
  return `${number(100 * p, 1)} %`;
}

/** A token's text with what cannot be seen made visible. */
function visible(text) {
  if (text === "") return t("token.control");
  return text.replace(/ /g, "␣").replace(/\n/g, "⏎").replace(/\t/g, "⇥");
}

function placeBeside(box, target) {
  const at = target.getClientRects()[0] ?? target.getBoundingClientRect();
  const { width, height } = box.getBoundingClientRect();
  const left = Math.min(Math.max(MARGIN, at.left + at.width / 2 - width / 2), window.innerWidth - width - MARGIN);
  const above = at.top - height - MARGIN;
  const top = above >= MARGIN ? above : at.bottom + MARGIN;
  box.style.setProperty("left", `${left}px`);
  box.style.setProperty("top", `${top}px`);
}
