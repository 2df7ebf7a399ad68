// Which stretch of a text each token is, and how sure the model was of it.

const decoder = new TextDecoder("utf-8");

/** Probability of a log-probability, 0 to 1. */
export function probability(logprob) {
  return Math.exp(logprob);
}

/**
 * Where each token of an answer stands in a text.
 *
 * @param {object[]} tokens as a turn keeps them: of everything that was generated, marks and thought included
 * @param {string} text the part that is shown
 * @returns {{start: number, end: number, index: number}[]} ascending, without tokens that are no part of the text
 */
export function place(tokens, text) {
  const pieces = texts(tokens);
  const whole = pieces.join("");
  const offset = text === "" ? -1 : whole.lastIndexOf(text);
  return offset < 0 ? placeOneByOne(pieces, text) : placeFrom(pieces, text.length, offset);
}

function placeFrom(pieces, length, offset) {
  const spans = [];
  let at = -offset;
  pieces.forEach((piece, index) => {
    const [start, end] = [Math.max(0, at), Math.min(length, at + piece.length)];
    if (end > start) spans.push({ start, end, index });
    at += piece.length;
  });
  return spans;
}

/** Where the tokens are not the text in a row, as between the marks of calls: each is looked for where the last ended. */
function placeOneByOne(pieces, text) {
  const spans = [];
  let at = 0;
  pieces.forEach((piece, index) => {
    if (piece === "" || !text.startsWith(piece, at)) return;
    spans.push({ start: at, end: at + piece.length, index });
    at += piece.length;
  });
  return spans;
}

/** Text of each token; a character that several share belongs to the last of them. */
function texts(tokens) {
  const pieces = [];
  let held = [];
  for (const token of tokens) {
    if (token.b === undefined) {
      pieces.push(token.t);
      held = [];
      continue;
    }
    held.push(...token.b);
    const text = decoder.decode(new Uint8Array(held));
    const whole = !text.includes("\ufffd");
    pieces.push(whole ? text : "");
    if (whole) held = [];
  }
  return pieces;
}

/** How unsure the model was, in steps from 0 (sure) to 4. */
export function doubt(logprob) {
  const p = probability(logprob);
  if (p >= 0.9) return 0;
  if (p >= 0.6) return 1;
  if (p >= 0.3) return 2;
  return p >= 0.1 ? 3 : 4;
}
