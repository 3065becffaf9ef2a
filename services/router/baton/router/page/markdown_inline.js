// Markdown inside a block: code, emphasis and links, as elements and plain text. Only what a browser opens as a page or a
// letter becomes a link.

import { el } from "./dom.js";

export const MAX_DEPTH = 8;
const MAX_LABEL = 1000;
const MAX_URL = 1000;
const STYLES = { "**": "strong", __: "strong", "~~": "del", "*": "em", _: "em" };
const SPECIAL = /[\\`*_~[!<h]/g;
const BARE_URL = /https?:\/\/[^\s<>"'`*|\\^{}]{1,2000}/y;
const WORD = /[\p{L}\p{N}_]/u;

// Nodes of a text: code, emphasis, links. A delimiter for which no end was found once has none further on either.
export function inline(text, depth) {
  if (depth >= MAX_DEPTH) return [text];
  const nodes = [];
  const endless = new Set();
  let plain = "";
  let at = 0;
  while (at < text.length) {
    SPECIAL.lastIndex = at;
    const next = SPECIAL.exec(text)?.index ?? text.length;
    plain += text.slice(at, next);
    at = next;
    if (at === text.length) break;
    const [node, end] = span(text, at, depth, endless);
    if (typeof node === "string") {
      plain += node;
    } else {
      if (plain) nodes.push(plain);
      plain = "";
      nodes.push(node);
    }
    at = end;
  }
  if (plain) nodes.push(plain);
  return nodes;
}

// What begins at a special character: an element, or plain text, and where it ends.
function span(text, at, depth, endless) {
  const char = text[at];
  if (char === "\\") return /[!-/:-@[-`{-~]/.test(text[at + 1] ?? "") ? [text[at + 1], at + 2] : [char, at + 1];
  if (char === "`") return codeSpan(text, at, endless);
  if (char === "[") return link(text, at, depth, "") ?? [char, at + 1];
  if (char === "!") return (text[at + 1] === "[" && link(text, at + 1, depth, "picture: ")) || [char, at + 1];
  if (char === "h" || char === "<") return bareLink(text, at) ?? [char, at + 1];
  return emphasis(text, at, depth, endless);
}

function codeSpan(text, at, endless) {
  let open = at;
  while (text[open] === "`") open += 1;
  const ticks = text.slice(at, open);
  for (let from = open; !endless.has(ticks); ) {
    const close = text.indexOf(ticks, from);
    if (close < 0) {
      endless.add(ticks);
      break;
    }
    let end = close;
    while (text[end] === "`") end += 1;
    if (end - close === ticks.length) return [el("code", {}, text.slice(open, close).trim() || text.slice(open, close)), end];
    from = end;
  }
  return [ticks, open];
}

function emphasis(text, at, depth, endless) {
  const mark = STYLES[text.slice(at, at + 2)] ? text.slice(at, at + 2) : text[at];
  const open = at + mark.length;
  const opens = STYLES[mark] && /\S/.test(text[open] ?? " ") && !(mark[0] === "_" && WORD.test(text[at - 1] ?? " "));
  if (opens && !endless.has(mark)) {
    for (let close = text.indexOf(mark, open + 1); close >= 0; close = text.indexOf(mark, close + 1)) {
      if (mark.length === 2 && text[open] === mark[0] && text[close + 2] === mark[0]) close += 1; // ***both***
      if (closes(text, close, mark)) return [el(STYLES[mark], {}, inline(text.slice(open, close), depth + 1)), close + mark.length];
      if (mark.length === 1) while (text[close + 1] === mark) close += 1;
    }
    endless.add(mark);
  }
  return [mark, open];
}

function closes(text, at, mark) {
  if (/\s/.test(text[at - 1])) return false;
  const after = text[at + mark.length] ?? " ";
  if (mark.length === 1 && after === mark) return false;
  return mark[0] !== "_" || !WORD.test(after);
}

function link(text, at, depth, before) {
  let end = at + 1;
  while (end < text.length && end - at < MAX_LABEL && text[end] !== "[" && text[end] !== "]") end += 1;
  if (text[end] !== "]" || text[end + 1] !== "(") return null;
  let open = 0;
  let close = end + 2;
  for (; close < text.length && close - end < MAX_URL; close += 1) {
    if (text[close] === "(") open += 1;
    else if (text[close] === ")" && open-- === 0) break;
  }
  if (text[close] !== ")") return null;
  const [address] = text.slice(end + 2, close).trim().split(/\s/, 1);
  const label = text.slice(at + 1, end);
  const made = anchor(address, label ? [before, ...inline(label, depth + 1)] : [before, address]);
  return made && [made, close + 1];
}

function bareLink(text, at) {
  const start = text[at] === "<" ? at + 1 : at;
  if (start === at && at > 0 && WORD.test(text[at - 1])) return null;
  BARE_URL.lastIndex = start;
  let address = BARE_URL.exec(text)?.[0];
  if (!address) return null;
  if (start > at) return text[start + address.length] === ">" ? [anchor(address, [address]) ?? address, start + address.length + 1] : null;
  while (/[.,;:!?)\]]$/.test(address)) address = address.slice(0, -1);
  const made = anchor(address, [address]);
  return made && [made, start + address.length];
}

// Only what a browser opens as a page or a letter is a link; the address is shown when one points at it.
function anchor(address, children) {
  let url;
  try {
    url = new URL(address);
  } catch {
    return null;
  }
  if (!["http:", "https:", "mailto:"].includes(url.protocol)) return null;
  return el("a", { href: url.href, title: url.href, target: "_blank", rel: "noopener noreferrer nofollow" }, children);
}
