// The state of the page, and all that can be done with it. Views listen to its events and draw; nothing here draws.
//
// Events: `list` (which conversations there are), `thread` (which turns are shown), `turn` (one turn changed; `detail`
// is it), `status` (an answer began or ended), `settings` (of the conversation), `models`, `notice` (`detail`: a text),
// `key` (the server wants one).

import { ApiError, ConnectionLost, events, getJson, parseEvent, request } from "./api.js";
import { addChunk, DEFAULT_SETTINGS, emptyAnswer, requestBody } from "./answer.js";
import { Database } from "./database.js";
import { t } from "./i18n.js";
import { prefs, savePrefs } from "./prefs.js";
import {
  addTurn,
  forked,
  lastTurn,
  newConversation,
  newId,
  parentOf,
  path,
  selectBranch,
  settle,
  State,
} from "./tree.js";

const SAVE_EVERY = 1000;
const TITLE_LENGTH = 120;
const FOR_ONE_CONVERSATION = ["system", "form", "schema", "tools", "tool_choice"];

export class Chat extends EventTarget {
  constructor() {
    super();
    this.database = new Database();
    this.conversations = new Map();
    this.models = [];
    this.current = null;
    this.running = new Map(); // conversation id → { controller, turn }
    this.saving = new Map(); // conversation id → timer
  }

  /** Loads what is kept, and asks the server for its models. */
  async start() {
    await this.database.open();
    const kept = await this.database.all().catch(() => []);
    for (const conversation of kept) this.conversations.set(conversation.id, settle(conversation));
    this.current = this.conversations.get(prefs.conversation) ?? newConversation(this.#initialSettings());
    this.#emit("list");
    await this.loadModels();
  }

  #emit(type, detail = null) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }

  notify(text) {
    this.#emit("notice", text);
  }

  // -- server ----------------------------------------------------------------------------------------------------

  /** Asks which models there are; a server that wants a key is told apart from one that does not answer. */
  async loadModels() {
    try {
      const { data } = await getJson("v1/models");
      this.models = data;
      this.#emit("models");
    } catch (error) {
      if (error instanceof ApiError && error.status === 401) this.#emit("key", error);
      else this.notify(error instanceof ConnectionLost ? t("error.unreachable") : error.message);
    }
  }

  /** The served model that the conversation goes to; null while none is known. */
  model() {
    return this.models.find((each) => each.id === this.current.settings.model) ?? this.models[0] ?? null;
  }

  // -- conversations ---------------------------------------------------------------------------------------------

  /** Conversations, the latest first. */
  list() {
    return [...this.conversations.values()].sort((one, other) => other.updated - one.updated);
  }

  #initialSettings() {
    return { ...DEFAULT_SETTINGS, ...prefs.settings };
  }

  open(id) {
    const conversation = id === null ? newConversation(this.#initialSettings()) : this.conversations.get(id);
    if (!conversation) return;
    this.current = conversation;
    savePrefs({ conversation: id });
    this.#emit("list");
    this.#emit("thread");
    this.#emit("settings");
    this.#emit("status");
  }

  rename(id, title) {
    const conversation = this.conversations.get(id);
    conversation.title = title.trim().slice(0, TITLE_LENGTH) || conversation.title;
    this.save(conversation);
    this.#emit("list");
  }

  async remove(id) {
    this.running.get(id)?.controller.abort();
    this.conversations.delete(id);
    clearTimeout(this.saving.get(id));
    this.saving.delete(id);
    await this.database.remove(id);
    if (this.current.id === id) this.open(this.list()[0]?.id ?? null);
    else this.#emit("list");
  }

  /** A conversation of its own that begins as this one up to a turn. */
  fork(turn) {
    const copy = forked(this.current, turn);
    this.conversations.set(copy.id, copy);
    this.save(copy);
    this.open(copy.id);
  }

  /** Takes settings of the present conversation; sampling and model are those of the next new one too. */
  change(settings) {
    Object.assign(this.current.settings, settings);
    const shared = { ...this.current.settings };
    for (const name of FOR_ONE_CONVERSATION) delete shared[name];
    savePrefs({ settings: shared });
    this.#touch(this.current);
    this.#emit("settings");
  }

  #touch(conversation) {
    if (this.conversations.has(conversation.id)) this.save(conversation);
  }

  /** Keeps a conversation, now or, while an answer comes, once in a while. */
  save(conversation, { soon = false } = {}) {
    if (soon && this.saving.has(conversation.id)) return;
    clearTimeout(this.saving.get(conversation.id));
    const write = () => {
      this.saving.delete(conversation.id);
      if (!this.conversations.has(conversation.id)) return;
      this.database.put(conversation).catch(() => this.notify(t("error.storage")));
    };
    if (soon) this.saving.set(conversation.id, setTimeout(write, SAVE_EVERY));
    else write();
  }

  // -- turns -----------------------------------------------------------------------------------------------------

  turns() {
    return path(this.current);
  }

  isRunning() {
    return this.running.has(this.current.id);
  }

  /** Asks a question behind what there is. */
  send(text) {
    if (this.isRunning() || !text.trim()) return;
    this.#ask(lastTurn(this.current), text);
  }

  /** Asks a question in place of another one, which stays as a branch. */
  edit(turn, text) {
    if (this.isRunning() || !text.trim()) return;
    this.#ask(parentOf(this.current, turn), text);
  }

  #ask(parent, text) {
    const { current } = this;
    if (!this.conversations.has(current.id)) {
      this.conversations.set(current.id, current);
      savePrefs({ conversation: current.id });
    }
    current.title ||= text.trim().split("\n")[0].slice(0, TITLE_LENGTH);
    current.updated = Date.now();
    const question = addTurn(current, parent, { role: "user", content: text });
    this.#answer(question);
    this.#emit("list");
  }

  /** Tells the model what its calls gave, and has it go on. */
  giveResults(turn, results) {
    if (this.isRunning()) return;
    let parent = turn;
    turn.calls.forEach((call, index) => {
      const fields = { role: "tool", callId: call.id, name: call.name, content: results[index] };
      parent = addTurn(this.current, parent, fields);
    });
    this.#answer(parent);
  }

  /** Another answer to the same question, beside the first one. */
  again(turn) {
    if (!this.isRunning()) this.#answer(parentOf(this.current, turn));
  }

  /** Goes on with an answer that was cut. */
  goOn(turn) {
    if (this.isRunning()) return;
    turn.earlier = turn.usage ?? { completion: turn.tokens.length };
    this.#run(turn, { continues: true });
  }

  selectBranch(turn, step) {
    if (this.isRunning()) return;
    selectBranch(this.current, turn, step);
    this.#touch(this.current);
    this.#emit("thread");
  }

  stop() {
    this.running.get(this.current.id)?.controller.abort();
  }

  #answer(parent) {
    const turn = addTurn(this.current, parent, emptyAnswer(this.model()?.id ?? null));
    this.#run(turn, { continues: false });
  }

  async #run(turn, { continues }) {
    const conversation = this.current;
    const controller = new AbortController();
    const requestId = newId();
    Object.assign(turn, { state: State.RUNNING, error: null, finish: null, timing: null, requestId });
    this.running.set(conversation.id, { controller, turn });
    this.save(conversation);
    this.#emit("thread");
    this.#emit("status");
    try {
      await this.#stream(conversation, turn, { continues, requestId, signal: controller.signal });
      turn.state = State.DONE;
    } catch (error) {
      this.#fail(turn, error, controller.signal);
    }
    this.running.delete(conversation.id);
    conversation.updated = Date.now();
    this.save(conversation);
    this.#emit("turn", turn);
    this.#emit("status");
    this.#emit("list");
    await this.#addTiming(conversation, turn);
  }

  async #stream(conversation, turn, { continues, requestId, signal }) {
    const body = requestBody(conversation, turn, { alternatives: prefs.alternatives, continues });
    const started = performance.now();
    const headers = { "X-Request-Id": requestId };
    const response = await request("v1/chat/completions", { method: "POST", body, headers, signal });
    turn.clock = { first: null, last: null };
    let isWhole = false;
    for await (const data of events(response, signal)) {
      if (data === "[DONE]") {
        isWhole = true;
        continue; // to the end of the response, which leaves the connection whole for the next one
      }
      turn.clock.last = (performance.now() - started) / 1000;
      turn.clock.first ??= turn.clock.last;
      addChunk(turn, parseEvent(data));
      this.save(conversation, { soon: true });
      this.#emit("turn", turn);
    }
    if (!isWhole) throw new ConnectionLost();
  }

  #fail(turn, error, signal) {
    if (signal.aborted) {
      turn.state = State.STOPPED;
    } else if (error instanceof ConnectionLost) {
      turn.state = State.BROKEN;
    } else {
      turn.state = State.FAILED;
      turn.error = { message: error.message, retryAfter: error.retryAfter ?? null };
      if (error instanceof SyntaxError) turn.error.message = t("error.json", { reason: error.message });
      if (error.status === 401) this.#emit("key", error);
    }
  }

  /** Asks the server where the time of an answer went. It forgets requests after some hundred others. */
  async #addTiming(conversation, turn) {
    if (turn.state === State.FAILED || turn.state === State.BROKEN) return;
    try {
      const live = await getJson(`v1/requests/${turn.requestId}`);
      turn.timing = live.seconds;
      turn.usage ??= {
        prompt: live.prompt_tokens,
        cached: live.cached_tokens,
        completion: live.generated_tokens + (turn.earlier?.completion ?? 0),
        latest: live.generated_tokens,
      };
      this.save(conversation);
      this.#emit("turn", turn);
    } catch {
      // The answer is there all the same.
    }
  }
}
