// The turns that are shown, and what is there to try while there are none.

import { el, fill, icon, iconButton } from "../dom.js";
import { t } from "../i18n.js";
import { prefs } from "../prefs.js";
import { EXAMPLE_SCHEMA, EXAMPLE_TOOLS } from "../examples.js";
import { tokenTooltip } from "./tooltip.js";
import { turnView } from "./turn.js";

const NEAR_END = 60;

/** @returns {HTMLElement} */
export function thread(chat, signal) {
  const column = el("div", { class: "column" });
  const jump = iconButton("down", t("jump"), () => toEnd("smooth"), { class: "icon-button jump", hidden: true });
  const scroller = el("div", { class: "thread", tabindex: "-1" }, column);
  const status = el("div", { class: "off-screen", role: "status" });
  let views = new Map();
  let follows = true;
  let frame = null;
  let wasRunning = chat.isRunning();
  const changed = new Set();

  function toEnd(behavior = "instant") {
    scroller.scrollTo({ top: scroller.scrollHeight, behavior });
  }

  function draw() {
    const before = views;
    views = new Map();
    const turns = chat.turns();
    for (const turn of turns) {
      const view = before.get(turn.id) ?? turnView(chat, turn);
      if (before.has(turn.id)) view.draw();
      views.set(turn.id, view);
    }
    fill(column, turns.length === 0 ? welcome(chat) : [...views.values()].map(({ node }) => node));
    follows = true;
    toEnd();
  }

  // However often turns change, they are drawn once a frame.
  function drawSoon(turn) {
    changed.add(turn.id);
    frame ??= requestAnimationFrame(() => {
      frame = null;
      for (const id of changed) views.get(id)?.draw();
      changed.clear();
      if (follows) toEnd();
      updateJump();
    });
  }

  function updateJump() {
    const left = scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight;
    follows = left < NEAR_END;
    jump.hidden = follows || chat.turns().length === 0;
  }

  scroller.addEventListener("scroll", updateJump, { passive: true });
  chat.addEventListener("thread", draw, { signal });
  chat.addEventListener("models", () => chat.turns().length === 0 && draw(), { signal });
  chat.addEventListener("turn", ({ detail }) => drawSoon(detail), { signal });
  chat.addEventListener(
    "status",
    () => {
      // Told to who cannot see it; of an answer that was there before there is nothing to tell.
      status.textContent = wasRunning && !chat.isRunning() ? t("answer.done") : "";
      wasRunning = chat.isRunning();
      for (const view of views.values()) view.draw();
    },
    { signal },
  );
  const applyTint = () => scroller.classList.toggle("tinted", prefs.tint);
  chat.addEventListener("settings", applyTint, { signal });
  applyTint();
  tokenTooltip(scroller, (target) => tokenOf(chat, target), signal);
  draw();
  return el("div", { class: "thread-box" }, scroller, jump, status);
}

function tokenOf(chat, target) {
  const turn = chat.current.turns[target.closest("[data-turn]")?.dataset.turn];
  return turn?.tokens?.[Number(target.dataset.token)] ?? null;
}

function welcome(chat) {
  const model = chat.model();
  const offers = [
    ["explain", "book", {}],
    ["code", "edit", {}],
    ["schema", "check", { form: "schema", schema: EXAMPLE_SCHEMA }],
    ["tool", "wrench", { tools: EXAMPLE_TOOLS }],
  ];
  return el(
    "div",
    { class: "welcome" },
    el("h1", {}, t("welcome")),
    model ? el("p", {}, t("welcome.by", { model: model.id })) : null,
    el(
      "div",
      { class: "offers" },
      offers.map(([name, sign, settings]) =>
        el(
          "button",
          {
            type: "button",
            class: "offer",
            data: { offer: name },
            on: {
              click: () => {
                chat.change(settings);
                chat.send(t(`try.${name}.text`));
              },
            },
          },
          icon(sign),
          el("span", {}, el("strong", {}, t(`try.${name}`)), el("small", {}, t(`try.${name}.text`))),
        ),
      ),
    ),
  );
}
