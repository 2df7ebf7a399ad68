// Markdown to elements. A small library reads it (vendor/); elements are made here, one kind at a time, so that nothing
// a model writes is ever taken as markup. Text knows where it stands in the source: there its tokens are told apart.

import { copyText, el, icon } from "./dom.js";
import { t } from "./i18n.js";
import { doubt } from "./tokens.js";
import { Lexer } from "../vendor/marked.esm.js";

const SAFE_LINK = /^(https?:|mailto:)/i;
const ENTITIES = { amp: "&", lt: "<", gt: ">", quot: '"', "#39": "'", apos: "'", nbsp: "\u00a0" };
const FURTHEST = 400; // characters of markup that may stand between two texts

/** Makes elements of one source, whose tokens are `spans` (see tokens.js). */
class Writer {
  constructor(source, spans, tokens, at) {
    this.source = source;
    this.spans = spans;
    this.tokens = tokens;
    this.at = at;
    this.next = firstBehind(spans, at);
  }

  /** Nodes of a text, the tokens in it in elements of their own. */
  text(text) {
    return text.split(/(?<=\n)/).flatMap((line) => this.#line(line));
  }

  #line(line) {
    const body = line.replace(/\n$/, "");
    const start = this.source.indexOf(body, this.at);
    if (body === "" || start < 0 || start - this.at > FURTHEST) return [unescaped(line)];
    this.at = start + body.length;
    const nodes = [];
    let done = start;
    while (this.next < this.spans.length && this.spans[this.next].end <= start) this.next += 1;
    for (let i = this.next; i < this.spans.length && this.spans[i].start < this.at; i += 1) {
      const span = this.spans[i];
      const [from, to] = [Math.max(span.start, start), Math.min(span.end, this.at)];
      if (from > done) nodes.push(unescaped(this.source.slice(done, from)));
      nodes.push(this.#token(span.index, this.source.slice(from, to)));
      done = to;
    }
    if (done < this.at) nodes.push(unescaped(this.source.slice(done, this.at)));
    if (line !== body) nodes.push("\n");
    return nodes;
  }

  #token(index, text) {
    const level = doubt(this.tokens[index].p);
    return el("span", { class: level === 0 ? "token" : `token doubt-${level}`, data: { token: index } }, unescaped(text));
  }

  inlines(list) {
    return (list ?? []).map((each) => this.inline(each));
  }

  inline(token) {
    switch (token.type) {
      case "strong":
      case "em":
      case "del":
        return el(token.type, {}, this.inlines(token.tokens));
      case "codespan":
        return el("code", {}, this.text(token.text));
      case "br":
        return el("br");
      case "link":
        return this.#link(token.href, token.tokens ? this.inlines(token.tokens) : this.text(token.text));
      case "image": // a picture would be fetched from wherever the model says
        return this.#link(token.href, this.text(token.text || token.href));
      case "checkbox":
        return el("input", { type: "checkbox", disabled: true, checked: token.checked });
      case "text":
        return token.tokens ? this.inlines(token.tokens) : this.text(token.text);
      default:
        return this.text(token.text ?? token.raw);
    }
  }

  #link(href, children) {
    if (!SAFE_LINK.test(href)) return children;
    return el("a", { href, target: "_blank", rel: "noopener noreferrer" }, children);
  }

  blocks(list) {
    return list.map((each) => this.block(each));
  }

  block(token) {
    switch (token.type) {
      case "space":
        return null;
      case "hr":
        return el("hr");
      case "heading":
        return el(`h${Math.min(6, token.depth + 2)}`, {}, this.inlines(token.tokens));
      case "paragraph":
        return el("p", {}, this.inlines(token.tokens));
      case "blockquote":
        return el("blockquote", {}, this.blocks(token.tokens));
      case "code":
        return codeBlock(this.text(token.text), token.text, token.lang);
      case "list":
        return this.#list(token);
      case "table":
        return this.#table(token);
      case "html":
        return el("p", {}, this.text(token.text.replace(/\n+$/, "")));
      case "def":
        return el("p", {}, this.text(token.raw.trim()));
      default:
        return this.inline(token);
    }
  }

  #list(token) {
    const items = token.items.map((item) => el("li", { class: item.task ? "task" : null }, this.blocks(item.tokens)));
    return el(token.ordered ? "ol" : "ul", { start: token.ordered && token.start !== 1 ? token.start : null }, items);
  }

  #table(token) {
    const cell = (tag, each) => el(tag, { class: each.align ? `align-${each.align}` : null }, this.inlines(each.tokens));
    const head = el("tr", {}, token.header.map((each) => cell("th", each)));
    const rows = token.rows.map((row) => el("tr", {}, row.map((each) => cell("td", each))));
    return el("div", { class: "table" }, el("table", {}, el("thead", {}, head), el("tbody", {}, rows)));
  }
}

function firstBehind(spans, at) {
  let [low, high] = [0, spans.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (spans[middle].end <= at) low = middle + 1;
    else high = middle;
  }
  return low;
}

function unescaped(text) {
  return text.includes("&") ? text.replace(/&(amp|lt|gt|quot|#39|apos|nbsp);/g, (_, name) => ENTITIES[name]) : text;
}

/** A block of code with its language and a button that copies it. */
export function codeBlock(children, text, lang) {
  const copy = el(
    "button",
    { type: "button", class: "copy-code", "aria-label": t("copy"), title: t("copy") },
    icon("copy"),
  );
  copy.addEventListener("click", async () => {
    await copyText(text);
    copy.replaceChildren(icon("check"));
    setTimeout(() => copy.replaceChildren(icon("copy")), 1500);
  });
  const head = el("div", { class: "code-head" }, el("span", {}, lang || ""), copy);
  return el("div", { class: "code" }, head, el("pre", {}, el("code", {}, children)));
}

/** Draws a growing source into one element: blocks that have not changed keep their elements. */
export class MarkdownView {
  #drawn = []; // { raw, key, node }

  #breaks;

  /** @param {boolean} [options.breaks] whether a line of the source is a line of the text, as in conversations */
  constructor({ breaks = true } = {}) {
    this.#breaks = breaks;
    this.node = el("div", { class: "markdown" });
  }

  /**
   * @param {string} source
   * @param {{start: number, end: number, index: number}[]} spans places of the source's tokens
   * @param {object[]} tokens
   */
  draw(source, spans, tokens) {
    const text = source.replace(/\r\n?/g, "\n");
    const blocks = new Lexer({ gfm: true, breaks: this.#breaks }).lex(text);
    let at = 0;
    const drawn = blocks.map((block, index) => {
      const start = Math.max(at, text.indexOf(block.raw, at));
      at = start + block.raw.length;
      const key = `${start}:${countWithin(spans, start, at)}`;
      const before = this.#drawn[index];
      if (before && before.raw === block.raw && before.key === key) return before;
      const node = new Writer(text, spans, tokens, start).block(block);
      return { raw: block.raw, key, node: Array.isArray(node) ? el("p", {}, node) : node };
    });
    this.#replace(drawn);
  }

  #replace(drawn) {
    const kept = drawn.findIndex((each, index) => each !== this.#drawn[index]);
    const from = kept < 0 ? drawn.length : kept;
    for (const { node } of this.#drawn.slice(from)) node?.remove();
    for (const { node } of drawn.slice(from)) if (node) this.node.append(node);
    this.#drawn = drawn;
  }
}

function countWithin(spans, start, end) {
  return firstBehind(spans, end) - firstBehind(spans, start);
}
