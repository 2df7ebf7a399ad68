// One turn of a conversation: a question, an answer, or what a tool gave.

import { copyText, el, fill, icon, iconButton } from "../dom.js";
import { number, t } from "../i18n.js";
import { MarkdownView, codeBlock } from "../markdown.js";
import { place } from "../tokens.js";
import { branches, State } from "../tree.js";
import { timeline } from "./timeline.js";

/** The view of a turn: `node`, and `draw()` after the turn has changed. */
export function turnView(chat, turn) {
  if (turn.role === "user") return question(chat, turn);
  return turn.role === "tool" ? toolResult(turn) : answer(chat, turn);
}

function branchSwitch(chat, turn) {
  const { count, index } = branches(chat.current, turn);
  if (count < 2) return null;
  const step = (sign, label, by, disabled) =>
    iconButton(sign, label, () => chat.selectBranch(turn, by), { disabled: disabled || chat.isRunning() });
  return el(
    "span",
    { class: "branches" },
    step("left", t("branch.before"), -1, index === 0),
    el("span", { "aria-label": t("branch.of", { index: index + 1, count }) }, `${index + 1}/${count}`),
    step("right", t("branch.next"), 1, index === count - 1),
  );
}

function copyButton(text) {
  const button = iconButton("copy", t("copy"), async () => {
    await copyText(text());
    button.replaceChildren(icon("check"));
    setTimeout(() => button.replaceChildren(icon("copy")), 1500);
  });
  return button;
}

// -- questions -----------------------------------------------------------------------------------------------------

function question(chat, turn) {
  const node = el("article", { class: "turn user", "aria-label": t("you"), data: { turn: turn.id } });
  const draw = () =>
    fill(
      node,
      el("div", { class: "bubble" }, turn.content),
      el(
        "div",
        { class: "actions" },
        branchSwitch(chat, turn),
        copyButton(() => turn.content),
        iconButton("edit", t("edit"), () => fill(node, editor(chat, turn, draw)), {
          data: { action: "edit" },
          disabled: chat.isRunning(),
        }),
      ),
    );
  draw();
  return { node, draw };
}

function editor(chat, turn, close) {
  const area = el("textarea", { class: "edit-area", "aria-label": t("edit"), rows: Math.min(12, turn.content.split("\n").length + 1) });
  area.value = turn.content;
  const submit = () => (area.value.trim() ? chat.edit(turn, area.value) : close());
  area.addEventListener("keydown", (event) => {
    if (event.key === "Escape") {
      event.stopPropagation();
      close();
    } else if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      submit();
    }
  });
  requestAnimationFrame(() => area.focus());
  return el(
    "div",
    { class: "editor" },
    area,
    el(
      "div",
      { class: "editor-buttons" },
      el("button", { type: "button", class: "button", on: { click: close } }, t("cancel")),
      el("button", { type: "button", class: "button primary", data: { action: "edit-send" }, on: { click: submit } }, t("edit.send")),
    ),
  );
}

function toolResult(turn) {
  const node = el(
    "article",
    { class: "turn tool", data: { turn: turn.id } },
    el("div", { class: "card" }, el("div", { class: "card-head" }, icon("wrench"), t("call.gave", { name: turn.name })), el("pre", {}, turn.content)),
  );
  return { node, draw: () => {} };
}

// -- answers -------------------------------------------------------------------------------------------------------

function answer(chat, turn) {
  const text = new MarkdownView();
  const frame = el("div", { class: "markdown-frame", tabindex: "0" }, text.node);
  const thought = el("details", { class: "thought" });
  const thoughtBody = el("div", { class: "thought-body" });
  const thoughtHead = el("summary");
  thought.append(thoughtHead, thoughtBody);
  const calls = el("div", { class: "calls" });
  const notice = el("div", { class: "notice" });
  const foot = el("div", { class: "foot" });
  const node = el(
    "article",
    { class: "turn assistant", "aria-label": turn.model ?? t("model"), data: { turn: turn.id } },
    thought,
    frame,
    calls,
    notice,
    foot,
  );
  let isOpen = false;

  const draw = () => {
    const running = turn.state === State.RUNNING;
    node.dataset.state = turn.state;
    node.setAttribute("aria-busy", String(running));
    thought.hidden = !turn.reasoning;
    thoughtHead.textContent = running && !turn.content ? t("thinking") : t("thought");
    thoughtBody.textContent = turn.reasoning.trim();
    text.draw(turn.content, turn.tokens.length ? place(turn.tokens, turn.content) : [], turn.tokens);
    frame.hidden = !turn.content;
    drawCalls(chat, turn, calls);
    fill(notice, noticeOf(chat, turn));
    isOpen = foot.querySelector("details")?.open ?? isOpen;
    fill(foot, running ? progress(turn) : [timeline(turn), actions(chat, turn)]);
    const details = foot.querySelector("details");
    if (details) details.open = isOpen;
  };
  draw();
  return { node, draw };
}

function progress(turn) {
  if (turn.content || turn.reasoning || turn.calls.length) return timeline(turn);
  return el("div", { class: "waiting" }, el("span", { class: "spinner", "aria-hidden": "true" }), t("waiting"));
}

function actions(chat, turn) {
  return el(
    "div",
    { class: "actions" },
    branchSwitch(chat, turn),
    turn.content ? copyButton(() => turn.content) : null,
    iconButton("retry", t("again"), () => chat.again(turn), { data: { action: "again" }, disabled: chat.isRunning() }),
    iconButton("fork", t("fork"), () => chat.fork(turn), { data: { action: "fork" } }),
  );
}

function noticeOf(chat, turn) {
  const goOn =
    turn.content && !turn.calls.length
      ? el("button", { type: "button", class: "button", data: { action: "go-on" }, on: { click: () => chat.goOn(turn) } }, t("goOn"))
      : null;
  const again = el("button", { type: "button", class: "button", on: { click: () => chat.again(turn) } }, t("again"));
  switch (turn.state) {
    case State.STOPPED:
      return [el("span", {}, t("stopped")), goOn];
    case State.BROKEN: {
      const count = number(turn.tokens.length || turn.usage?.completion || 0);
      const text = turn.content ? t("broken", { count }) : t("broken.early");
      return [el("span", { class: "problem", role: "alert" }, text), goOn, again];
    }
    case State.FAILED: {
      const later = turn.error.retryAfter ? t("failed.retry", { seconds: number(turn.error.retryAfter) }) : "";
      return [el("span", { class: "problem", role: "alert" }, `${t("failed")} ${turn.error.message} ${later}`), again];
    }
    default:
      return turn.finish === "length" ? [el("span", {}, t("cut")), goOn] : [];
  }
}

function drawCalls(chat, turn, box) {
  const key = JSON.stringify([turn.calls, turn.state, turn.children]);
  if (box.dataset.key === key) return; // a result that is being written stays
  box.dataset.key = key;
  const isOpen = turn.state === State.DONE && turn.calls.length > 0 && turn.children.length === 0;
  const fields = turn.calls.map((call) => resultField(call));
  const give = () => chat.giveResults(turn, fields.map((field) => field.value));
  fill(
    box,
    turn.calls.map((call, index) =>
      el(
        "div",
        { class: "card" },
        el("div", { class: "card-head" }, icon("wrench"), t("call"), " ", el("code", {}, call.name)),
        codeBlock([indented(call.args)], call.args, "json"),
        isOpen ? fields[index] : null,
      ),
    ),
    isOpen
      ? el("button", { type: "button", class: "button primary", data: { action: "give-results" }, on: { click: give } }, t("call.send"))
      : null,
  );
}

function resultField(call) {
  const label = t("call.result", { name: call.name });
  return el("textarea", { class: "result-area", rows: 2, "aria-label": label, placeholder: label });
}

function indented(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text; // not whole yet
  }
}
