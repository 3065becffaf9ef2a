// One request in numbers: its phases, and why it went to these workers.

import { get } from "./api.js";
import { clock, count, duration, el, nbytes } from "./dom.js";
import { PHASES } from "./timeline.js";

export function details(request) {
  if (request.state === "refused") return refusal(request);
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
      `${clock(request.at)} · total ${duration(request.total_ms)}${request.cause ? ` · ${words(request.cause)}` : ""} · id ${request.id} · `,
      el("button", { type: "button", class: "link", onclick: () => explain(request.id, why) }, "Why these workers?")),
    why,
  ];
}

function refusal(request) {
  const when = request.times > 1 ? `${count(request.times)} times, from ${clock(request.first_at)} to ${clock(request.at)}` : `at ${clock(request.at)}`;
  return [el("p", { class: "facts" }, `Refused ${when} with status ${request.status}, before any worker heard of it: ${words(request.cause)}. Last id ${request.id}`)];
}

export function words(cause) {
  return (cause ?? "").replaceAll("_", " ");
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
