// The list of the last requests, newest first; refusals that follow one another for the same cause are one row.

import { byId, clock, count, duration, el, plural, rate } from "./dom.js";
import { details, words } from "./request_details.js";
import { drawing, isReplaying, scale, view } from "./timeline.js";

export const LIMIT = 48;
const SHOWN = 24;

const rows = new Map();
const mine = new Set();
let list = null;
let axes = null;

// Marks a request as asked on this page.
export function markMine(id) {
  mine.add(id);
}

export function showRequests({ requests, now }) {
  if (!requests.length) {
    showNone();
    return;
  }
  if (list === null) makeList();
  const views = together(requests).slice(0, SHOWN).map((request) => view(request, now));
  const drawn = views.filter((each) => each.request.state !== "refused");
  const scales = [scale(drawn.map((each) => each.split)), scale(drawn.filter((each) => each.hasToken).map((each) => each.end - each.split))];
  scales.forEach((each, i) => axes[i].replaceChildren(el("span", {}, "0"), el("span", {}, duration(each / 2)), el("span", {}, duration(each))));
  place(views, scales);
}

function showNone() {
  list = null;
  rows.clear();
  byId("requests").replaceChildren(
    el("p", { class: "empty" }, el("strong", {}, "No request yet."), " Ask something in the chat, or send one to ", el("code", {}, "/v1/chat/completions"), "."),
  );
}

function makeList() {
  axes = [el("div", { class: "axis" }), el("div", { class: "axis" })];
  list = el("ol", { class: "rows" });
  byId("requests").replaceChildren(
    el("div", { class: "row head", "aria-hidden": "true" },
      el("span", {}, "Workers"),
      el("span", {}, el("span", {}, "arrival → first token"), axes[0]),
      el("span", {}, el("span", {}, "first token → end"), axes[1]),
      el("span", { class: "number" }, "First token")),
    list,
  );
}

// Rows that are there already stay, so that an open one stays open.
function place(views, scales) {
  const seen = new Set();
  views.forEach((each, i) => {
    let key = `${each.request.first_at ?? each.request.at} ${each.request.first_id ?? each.request.id}`;
    while (seen.has(key)) key += "'";
    seen.add(key);
    if (!rows.has(key)) rows.set(key, makeRow());
    const row = rows.get(key);
    row.show(each, scales);
    if (list.children[i] !== row.item) list.insertBefore(row.item, list.children[i] ?? null);
  });
  for (const [key, row] of rows) {
    if (!seen.has(key)) {
      row.item.remove();
      rows.delete(key);
    }
  }
}

// Joins refusals that follow one another: `times` of them, of which the oldest gives the row its name.
function together(requests) {
  const joined = [];
  for (const request of requests) {
    const last = joined.at(-1);
    if (request.state !== "refused") {
      joined.push(request);
    } else if (last?.state === "refused" && last.status === request.status && last.cause === request.cause) {
      Object.assign(last, { times: last.times + 1, first_at: request.at, first_id: request.id });
    } else {
      joined.push({ ...request, times: 1, first_at: request.at, first_id: request.id });
    }
  }
  return joined;
}

function makeRow() {
  const button = el("button", { type: "button", class: "row", "aria-expanded": "false" });
  const detail = el("div", { class: "detail", hidden: true });
  const item = el("li", {}, button, detail);
  let last = "";
  let request = null;
  button.addEventListener("click", () => {
    detail.hidden = !detail.hidden;
    button.setAttribute("aria-expanded", String(!detail.hidden));
    if (!detail.hidden) detail.replaceChildren(...details(request));
  });
  return {
    item,
    show(each, scales) {
      request = each.request;
      const state = JSON.stringify([each, scales, mine.has(request.id)]);
      if (state === last) return;
      last = state;
      item.dataset.state = request.state;
      item.dataset.id = request.id;
      button.replaceChildren(
        el("span", { class: "who" }, el("span", { class: "route" }, ...route(request)), el("span", { class: "muted" }, tokens(request))),
        ...(request.state === "refused" ? [el("span", { class: "why-refused" }, words(request.cause)), el("span")] : [drawing(each, scales[0], 0), drawing(each, scales[1], 1)]),
        el("span", { class: "number" }, el("span", {}, headline(each)), el("span", { class: "muted" }, outcome(each))));
      if (!detail.hidden && !detail.contains(document.activeElement)) detail.replaceChildren(...details(request));
    },
  };
}

function route(request) {
  const last = request.attempts.at(-1);
  if (request.state === "refused") return ["refused", request.times > 1 && el("span", { class: "tag warn" }, `× ${count(request.times)}`)].filter(Boolean);
  if (!last) return ["waiting for a worker"];
  const parts = last.prefill ? [...named(last, "prefill"), " → ", ...named(last, "decode")] : named(last, "decode");
  const replays = request.attempts.length - 1;
  if (replays > 0) parts.push(el("span", { class: "tag warn" }, plural(replays, "replay")));
  if (isReplaying(request)) parts.push(el("span", { class: "tag warn" }, "replaying"));
  return parts;
}

// Names that a cluster gives are long, and differ at their end: what is cut off is said before it.
function named(attempt, leg) {
  const name = attempt[leg];
  const isCut = name.length > 14;
  return [isCut && el("span", { class: "leg" }, `${leg} `), el("b", { "data-leg": leg, title: name }, isCut ? `…${name.slice(-6)}` : name)].filter(Boolean);
}

function tokens(request) {
  const at = clock(request.at);
  if (request.state === "refused") return `${at} · ${request.status}`;
  const cached = request.cached_tokens ? ` (${count(request.cached_tokens)} cached)` : "";
  const whose = mine.has(request.id) ? " · yours" : "";
  return `${at}${whose} · ${count(request.prompt_tokens)} in${cached} · ${count(request.completion_tokens)} out`;
}

function headline({ request, hasToken }) {
  if (request.state === "refused") return String(request.status);
  if (request.state === "failed") return `failed, ${request.status}`;
  if (hasToken) return duration(request.first_token_ms);
  return request.state === "cancelled" ? "stopped" : "waiting";
}

function outcome({ request, hasToken, end, split }) {
  if (request.state === "refused") return "refused";
  if (!hasToken) return duration(end);
  const seconds = (end - split) / 1000;
  const speed = request.completion_tokens > 1 && seconds > 0 ? `${rate((request.completion_tokens - 1) / seconds)} tok/s` : duration(end);
  return request.state === "cancelled" ? "stopped" : speed;
}
