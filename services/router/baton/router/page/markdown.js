// Markdown as elements. Everything that was written goes in as text nodes: there is no markup of the writer's in it,
// whatever it is, and no picture is fetched. Each pass is linear and nests a bounded number of times, so that no text hangs the page.

import { copyButton } from "./copy.js";
import { el } from "./dom.js";
import { MAX_DEPTH, inline } from "./markdown_inline.js";

// One text that grows: blocks that have not changed keep their elements.
export class Markdown {
  #node;
  #shown = [];

  constructor(node) {
    this.#node = node;
  }

  show(source) {
    const found = blocks(source.split(/\r?\n/), 0);
    found.forEach((block, i) => {
      const key = JSON.stringify(block);
      if (this.#shown[i] === key) return;
      this.#shown[i] = key;
      const old = this.#node.children[i];
      if (old) old.replaceWith(element(block, 0));
      else this.#node.append(element(block, 0));
    });
    this.#shown.length = found.length;
    while (this.#node.children.length > found.length) this.#node.lastElementChild.remove();
  }
}

// -- blocks ------------------------------------------------------------------------------------------------------

const FENCE = /^ {0,3}(`{3,}|~{3,})([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})(?=[ \t]|$)/;
const RULE = /^ {0,3}([-*_])[ \t]*(?:\1[ \t]*){2,}$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( *)([-*+]|\d{1,9}[.)])(?: +|$)/;

function blocks(lines, depth) {
  const found = [];
  let at = 0;
  while (at < lines.length) {
    if (!lines[at].trim()) {
      at += 1;
      continue;
    }
    const read = depth < MAX_DEPTH ? READERS.find((reader) => reader.starts(lines, at)) : null;
    const [block, next] = (read?.take ?? paragraph)(lines, at, depth);
    found.push(block);
    at = next;
  }
  return found;
}

const READERS = [
  { starts: (lines, at) => FENCE.test(lines[at]), take: code },
  { starts: (lines, at) => HEADING.test(lines[at]), take: heading },
  { starts: (lines, at) => RULE.test(lines[at]), take: (_lines, at) => [{ kind: "rule" }, at + 1] },
  { starts: (lines, at) => QUOTE.test(lines[at]), take: quote },
  { starts: (lines, at) => ITEM.test(lines[at]), take: list },
  { starts: isTable, take: table },
];

function paragraph(lines, at, depth) {
  let end = at + 1;
  while (end < lines.length && lines[end].trim() && !(depth < MAX_DEPTH && READERS.some((reader) => reader.starts(lines, end)))) end += 1;
  return [{ kind: "text", text: lines.slice(at, end).join("\n") }, end];
}

function code(lines, at) {
  const [, fence, language] = FENCE.exec(lines[at]);
  let end = at + 1;
  while (end < lines.length && !isClosing(lines[end].trim(), fence)) end += 1;
  return [{ kind: "code", language: language.trim().slice(0, 30), text: lines.slice(at + 1, end).join("\n") }, end + 1];
}

function isClosing(line, fence) {
  return line.length >= fence.length && line === fence[0].repeat(line.length);
}

function heading(lines, at) {
  const level = HEADING.exec(lines[at])[1].length;
  const text = lines[at].trim().slice(level).trim();
  return [{ kind: "heading", level, text: text.replace(/ #+$/, "") }, at + 1];
}

function quote(lines, at, depth) {
  let end = at;
  while (end < lines.length && QUOTE.test(lines[end])) end += 1;
  return [{ kind: "quote", blocks: blocks(lines.slice(at, end).map((line) => line.replace(QUOTE, "")), depth + 1) }, end];
}

// Items of one list; what is indented by two or more belongs to the item above, as models write it.
function list(lines, at, depth) {
  const [, margin, marker] = ITEM.exec(lines[at]);
  const isOrdered = marker.length > 1;
  const items = [];
  let end = at;
  let isLoose = false;
  let wasBlank = false;
  for (; end < lines.length; end += 1) {
    const line = lines[end].replace(/^[ \t]+/, (margin) => margin.replaceAll("\t", "    "));
    if (!line.trim()) {
      wasBlank = true;
      continue;
    }
    const item = ITEM.exec(line);
    const indent = line.length - line.trimStart().length;
    if (item && indent < margin.length + 2) {
      if (item[2].length > 1 !== isOrdered || RULE.test(line)) break;
      isLoose ||= wasBlank && items.length > 0;
      items.push([line.slice(item[0].length)]);
    } else if (indent >= margin.length + 2) {
      isLoose ||= wasBlank && !item;
      if (wasBlank) items.at(-1).push("");
      items.at(-1).push(line.slice(Math.min(indent, margin.length + marker.length + 1)));
    } else if (wasBlank || READERS.some((reader) => reader.starts(lines, end))) {
      break;
    } else {
      items.at(-1).push(line);
    }
    wasBlank = false;
  }
  const start = isOrdered ? parseInt(marker, 10) : null;
  return [{ kind: "list", start, isLoose, items: items.map((each) => blocks(each, depth + 1)) }, end];
}

function isTable(lines, at) {
  if (!lines[at].includes("|") || !lines[at + 1]?.includes("-")) return false;
  const edges = cells(lines[at + 1]);
  return edges.length === cells(lines[at]).length && edges.every((edge) => /^:?-+:?$/.test(edge));
}

function table(lines, at) {
  const aligns = cells(lines[at + 1]).map((edge) => (edge.endsWith(":") ? (edge.startsWith(":") ? "center" : "right") : null));
  const rows = [];
  let end = at + 2;
  for (; end < lines.length && lines[end].includes("|"); end += 1) rows.push(cells(lines[end]).slice(0, aligns.length));
  return [{ kind: "table", aligns, head: cells(lines[at]), rows }, end];
}

function cells(line) {
  const parts = line.trim().split("|");
  if (!parts[0].trim()) parts.shift();
  if (parts.length && !parts.at(-1).trim()) parts.pop();
  return parts.map((part) => part.trim());
}

// -- elements ----------------------------------------------------------------------------------------------------

const MAKERS = {
  text: (block, depth) => el("p", {}, inline(block.text, depth)),
  // the page's own headings are the first two
  heading: (block, depth) => el(`h${Math.min(block.level + 2, 6)}`, {}, inline(block.text, depth)),
  rule: () => el("hr"),
  quote: (block, depth) => el("blockquote", {}, block.blocks.map((each) => element(each, depth + 1))),
  list: (block, depth) => el(block.start === null ? "ul" : "ol", { start: block.start },
    block.items.map((item) => el("li", {}, item.flatMap((each) => (each.kind === "text" && !block.isLoose ? inline(each.text, depth + 1) : [element(each, depth + 1)]))))),
  table: (block, depth) => {
    const row = (tag, texts) => el("tr", {}, texts.map((text, i) => el(tag, { "data-align": block.aligns[i] }, inline(text, depth))));
    return el("div", { class: "scroll", tabindex: 0, role: "group", "aria-label": "Table" },
      el("table", {}, el("thead", {}, row("th", block.head)), el("tbody", {}, block.rows.map((texts) => row("td", texts)))));
  },
  code: (block) => el("div", { class: "code" },
    el("div", { class: "code-head" }, el("span", {}, block.language || "text"), copyButton(() => block.text, "Copy code")),
    el("pre", { tabindex: 0 }, el("code", {}, block.text))),
};

function element(block, depth) {
  return MAKERS[block.kind](block, depth);
}
