// A conversation is a tree of turns: another answer, or an edited question, is a branch beside the first one. At each
// fork one branch is selected; the selected turns from the root on are what is shown and what the model is sent.

/** Whether a turn of the assistant's is under way, whole, cut by the person, cut by the network, or refused. */
export const State = Object.freeze({
  RUNNING: "running",
  DONE: "done",
  STOPPED: "stopped",
  BROKEN: "broken",
  FAILED: "failed",
});

const ROOT = "root";

/** An id that nobody else has; also where the page came over plain HTTP, which has no randomUUID. */
export function newId() {
  const bytes = crypto.getRandomValues(new Uint8Array(12));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

export function newConversation(settings) {
  const now = Date.now();
  return {
    id: newId(),
    title: "",
    created: now,
    updated: now,
    settings: structuredClone(settings),
    turns: { [ROOT]: { id: ROOT, parent: null, children: [], selected: null } },
  };
}

/** The selected turns, first to last. */
export function path(conversation) {
  const turns = [];
  let at = conversation.turns[ROOT];
  while (at.selected !== null) {
    at = conversation.turns[at.selected];
    turns.push(at);
  }
  return turns;
}

/** The turns that lead to one, itself included. */
export function pathTo(conversation, turn) {
  const turns = [];
  for (let at = turn; at.id !== ROOT; at = conversation.turns[at.parent]) turns.unshift(at);
  return turns;
}

export function lastTurn(conversation) {
  return path(conversation).at(-1) ?? null;
}

/** Adds a turn behind another, or as a first one (`parent` null), and selects it. */
export function addTurn(conversation, parent, fields) {
  const before = conversation.turns[parent?.id ?? ROOT];
  const turn = { id: newId(), parent: before.id, children: [], selected: null, created: Date.now(), ...fields };
  conversation.turns[turn.id] = turn;
  before.children.push(turn.id);
  before.selected = turn.id;
  return turn;
}

/** The turn before one; null before the first. */
export function parentOf(conversation, turn) {
  return turn.parent === ROOT ? null : conversation.turns[turn.parent];
}

/** Where a turn stands among the branches of its fork. */
export function branches(conversation, turn) {
  const { children } = conversation.turns[turn.parent];
  return { count: children.length, index: children.indexOf(turn.id) };
}

/** Selects the branch that is `step` places further, if there is one. */
export function selectBranch(conversation, turn, step) {
  const parent = conversation.turns[turn.parent];
  const chosen = parent.children[parent.children.indexOf(turn.id) + step];
  if (chosen !== undefined) parent.selected = chosen;
}

/** A conversation of its own out of the turns that lead to one, that one included. */
export function forked(conversation, turn) {
  const copy = newConversation(conversation.settings);
  copy.title = conversation.title;
  let parent = null;
  for (const each of pathTo(conversation, turn)) {
    const { id: _id, parent: _parent, children: _children, selected: _selected, ...fields } = structuredClone(each);
    parent = addTurn(copy, parent, fields);
  }
  return copy;
}

/** Marks what was under way when the page closed: nobody reads on. */
export function settle(conversation) {
  for (const turn of Object.values(conversation.turns)) {
    if (turn.state === State.RUNNING) turn.state = State.BROKEN;
  }
  return conversation;
}
