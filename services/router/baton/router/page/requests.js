// The last requests, drawn. Left of a row: from arrival to the first token; right: from there to the end. The upper
// lane is the prefill worker, the lower one the decode worker, so a row shows who did what, and what overlapped.

import { get } from "./api.js";
import { byId, count, duration, el, nbytes, plural, rate, svg } from "./dom.js";

export const LIMIT = 24;
const LANES = { prefill: 2, decode: 12 };
const LANE_HEIGHT = 7;
const HEIGHT = 21;
const PHASES = { queue: "queue", prefill: "prefill", transfer: "KV transfer", decode: "decode" };

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
    list = null;
    rows.clear();
    byId("requests").replaceChildren(
      el("p", { class: "empty" }, el("strong", {}, "No request yet."), " Ask something in the chat, or send one to ", el("code", {}, "/v1/chat/completions"), "."),
    );
    return;
  }
  if (list === null) {
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
  const views = requests.map((request) => view(request, now));
  const scales = [scale(views.map((each) => each.split)), scale(views.filter((each) => each.hasToken).map((each) => each.end - each.split))];
  scales.forEach((each, i) => axes[i].replaceChildren(el("span", {}, "0"), el("span", {}, duration(each / 2)), el("span", {}, duration(each))));
  const seen = new Set();
  views.forEach((each, i) => {
    let key = `${each.request.at} ${each.request.id}`;
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

// What is drawn of a request, in ms from its arrival: `split` is the first token, or now.
function view(request, now) {
  const elapsed = Math.max(1000 * (now - request.at), 0);
  const end = request.total_ms ?? elapsed;
  const hasToken = request.first_token_ms !== null;
  return { request, end, hasToken, split: hasToken ? request.first_token_ms : end };
}

// The right edge of an axis, a round number; a lone slow request does not flatten all others, it is cut.
function scale(values) {
  const sorted = values.filter((value) => value > 0).sort((a, b) => a - b);
  if (!sorted.length) return 1;
  const most = sorted.at(-1);
  const usual = sorted[Math.floor(0.8 * (sorted.length - 1))];
  const top = most > 4 * usual ? 2 * usual : most;
  const unit = 10 ** Math.floor(Math.log10(top));
  return unit * [1, 1.5, 2, 3, 4, 5, 6, 8, 10].find((step) => step * unit >= top * 0.999);
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
        drawing(each, scales[0], 0), drawing(each, scales[1], 1),
        el("span", { class: "number" }, el("span", {}, headline(each)), el("span", { class: "muted" }, outcome(each))));
      if (!detail.hidden && !detail.contains(document.activeElement)) detail.replaceChildren(...details(request));
    },
  };
}

function route(request) {
  const last = request.attempts.at(-1);
  if (!last) return ["waiting for a worker"];
  const name = (leg) => el("b", { "data-leg": leg, title: last[leg] }, short(last[leg]));
  const parts = last.prefill ? [name("prefill"), " → ", name("decode")] : [name("decode")];
  const replays = request.attempts.length - 1;
  if (replays > 0) parts.push(el("span", { class: "tag warn" }, plural(replays, "replay")));
  return parts;
}

// Names that a cluster gives are long, and differ at their end.
function short(name) {
  return name.length > 14 ? `…${name.slice(-7)}` : name;
}

function tokens(request) {
  const cached = request.cached_tokens ? ` (${count(request.cached_tokens)} cached)` : "";
  const whose = mine.has(request.id) ? " · yours" : "";
  return `${count(request.prompt_tokens)} in${cached} · ${count(request.completion_tokens)} out${whose}`;
}

function headline({ request, hasToken }) {
  if (request.state === "failed") return `failed, ${request.status}`;
  if (hasToken) return duration(request.first_token_ms);
  return request.state === "cancelled" ? "stopped" : "waiting";
}

function outcome({ request, hasToken, end, split }) {
  if (!hasToken) return duration(end);
  const seconds = (end - split) / 1000;
  const speed = request.completion_tokens > 1 && seconds > 0 ? `${rate((request.completion_tokens - 1) / seconds)} tok/s` : duration(end);
  return request.state === "cancelled" ? "stopped" : speed;
}

// One half of a row: side 0 until the first token, side 1 from it.
function drawing(each, most, side) {
  const { request, split, end, hasToken } = each;
  const [from, to] = side ? [split, end] : [0, split];
  const at = (ms) => `${(100 * Math.min(Math.max(ms - from, 0), most)) / most}%`;
  const width = (start, stop) => `${(100 * (Math.min(stop - from, most) - Math.min(start - from, most))) / most}%`;
  const picture = svg("svg", { height: HEIGHT, role: "img", "aria-label": side ? told(request, from, Infinity) : told(request, 0, to) });
  if (side && !hasToken) return picture;
  if (!request.attempts.length) picture.append(svg("rect", { class: "span", "data-kind": "queue", x: 0, width: width(0, end), y: LANES.decode, height: LANE_HEIGHT, rx: 1 }));
  const line = (lane, start, stop) => picture.append(svg("rect", { class: "open", x: at(start), width: width(start, stop), y: LANES[lane] + 3, height: 1 }));
  for (const attempt of request.attempts) {
    const stop = Math.min(attempt.ended_ms ?? end, to);
    const start = Math.max(attempt.sent_ms, from);
    if (stop >= start) line("decode", start, stop);
    if (attempt.prefill && !side && stop >= start) line("prefill", start, stop);
    for (const span of attempt.spans) {
      const lane = span.worker === attempt.prefill ? "prefill" : "decode";
      const a = Math.max(span.start_ms, from);
      const b = Math.min(span.end_ms ?? end, to);
      if (b <= a) continue;
      const bar = svg("rect", { class: "span", "data-kind": span.kind, x: at(a), y: LANES[lane], height: LANE_HEIGHT, rx: 1 });
      bar.style.width = `max(2px, ${width(a, b)})`;
      picture.append(bar);
    }
    if (attempt.replay_reason && attempt.ended_ms >= from && attempt.ended_ms <= to)
      picture.append(svg("rect", { class: "lost", x: at(attempt.ended_ms), width: 2, y: 0, height: HEIGHT }));
  }
  if (!side && hasToken && split <= most) picture.append(svg("rect", { class: "first", x: at(split), width: 2, y: 0, height: HEIGHT }));
  if (to - from > most) picture.append(svg("text", { class: "cut", x: "100%", y: HEIGHT - 2, "text-anchor": "end" }, "»"));
  return picture;
}

function told(request, from, to) {
  const said = spansOf(request)
    .filter((span) => (span.end_ms ?? Infinity) > from && span.start_ms < to)
    .map((span) => `${PHASES[span.kind]} on ${span.worker} ${span.end_ms === null ? "until now" : duration(span.end_ms - span.start_ms)}`);
  return said.join(", ") || "nothing yet";
}

function spansOf(request) {
  return request.attempts.flatMap((attempt) => attempt.spans).sort((a, b) => a.start_ms - b.start_ms);
}

// -- one request, in numbers -------------------------------------------------------------------------------------

function details(request) {
  const lines = request.attempts.flatMap((attempt) => [
    ...[...attempt.spans].sort((a, b) => a.start_ms - b.start_ms).map((span) => cells(
      el("span", { class: "key", "data-kind": span.kind }, PHASES[span.kind]), span.worker, duration(span.start_ms),
      span.end_ms === null ? "…" : duration(span.end_ms - span.start_ms),
      span.bytes ? `${count(span.tokens)} tokens, ${nbytes(span.bytes)}` : span.tokens ? `${count(span.tokens)} tokens` : "")),
    ...(attempt.replay_reason ? [el("tr", { class: "lost" }, el("td", { colspan: 5 }, `${duration(attempt.ended_ms)}: ${attempt.replay_reason.replaceAll("_", " ")}; sent again`))] : []),
  ]);
  const why = el("div", { class: "why" });
  return [
    el("div", { class: "scroll" }, el("table", {},
      el("thead", {}, el("tr", {}, ...["Phase", "Worker", "Begins at", "Takes", ""].map((name, i) => el("th", { scope: "col", class: i === 2 || i === 3 ? "number" : null }, name)))),
      el("tbody", {}, lines.length ? lines : el("tr", {}, el("td", { colspan: 5, class: "muted" }, "No worker has told of it yet."))))),
    el("p", { class: "muted facts" },
      `${new Date(1000 * request.at).toLocaleTimeString([], { hour12: false })} · total ${duration(request.total_ms)} · id ${request.id} · `,
      el("button", { type: "button", class: "link", onclick: () => explain(request.id, why) }, "Why these workers?")),
    why,
  ];
}

function cells(phase, worker, begins, takes, note) {
  return el("tr", {}, el("td", {}, phase), el("td", {}, worker), el("td", { class: "number" }, begins), el("td", { class: "number" }, takes), el("td", { class: "muted" }, note));
}

async function explain(id, place) {
  try {
    const { routes } = await get(`debug/route?id=${encodeURIComponent(id)}`);
    const { chosen, considered } = routes.at(-1);
    const terms = [...new Set(considered.flatMap((option) => Object.keys(option.terms)))];
    const ms = (value) => (value === undefined ? "" : value.toFixed(1));
    place.replaceChildren(el("div", { class: "scroll" }, el("table", {},
      el("caption", {}, "Predicted milliseconds of each way; the least wins."),
      el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "Way"), ...terms.map((term) => el("th", { scope: "col", class: "number" }, term.replaceAll("_", " "))), el("th", { scope: "col", class: "number" }, "total"))),
      el("tbody", {}, [...considered].sort((a, b) => a.cost_ms - b.cost_ms).slice(0, 12).map((option) => {
        const isChosen = option.prefill === chosen.prefill && option.decode === chosen.decode;
        return el("tr", { class: isChosen ? "chosen" : null },
          el("th", { scope: "row" }, option.prefill ? `${option.prefill} → ${option.decode}` : option.decode, isChosen && " ✓"),
          ...terms.map((term) => el("td", { class: "number" }, ms(option.terms[term]))), el("td", { class: "number" }, ms(option.cost_ms)));
      })))));
  } catch (error) {
    place.replaceChildren(el("p", { class: "muted" }, error.message));
  }
}
