// The workers by leg: what each is doing now, and how full its KV cache is. Those that are gone stay below, with when and why.

import { ago, byId, clock, count, duration, el, plural, rate } from "./dom.js";

const LEGS = [
  { leg: "prefill", title: "Prefill", says: "reads prompts, and hands over their KV" },
  { leg: "decode", title: "Decode", says: "fetches the KV, and writes the answers" },
];

const MAX_LOST = 3; // of a leg, unless all are asked for
let showsAllLost = false;

export function startWorkers() {
  byId("more-lost").addEventListener("click", (event) => {
    showsAllLost = !showsAllLost;
    event.currentTarget.setAttribute("aria-pressed", String(showsAllLost));
  });
}

export function showWorkers({ workers, lost, now }) {
  const shown = LEGS.map(({ leg }) => workers.filter((worker) => worker.legs.includes(leg)));
  byId("workers-count").textContent = workers.length
    ? LEGS.map(({ leg }, i) => `${count(shown[i].length)} ${leg}`).join(" · ")
    : "";
  const gone = LEGS.map(({ leg }) => lost.filter((worker) => worker.legs.includes(leg)));
  byId("more-lost").hidden = gone.every((each) => each.length <= MAX_LOST);
  byId("more-lost").textContent = showsAllLost ? "Last lost" : `All ${count(lost.length)} lost`;
  if (!workers.length && !lost.length) {
    byId("workers").replaceChildren(
      el("p", { class: "empty" }, el("strong", {}, "No worker is here."), " Nothing is answered until one comes: ",
        el("code", {}, "baton decode"), " starts one, ", el("code", {}, "baton up"), " all of it."),
    );
    return;
  }
  byId("workers").replaceChildren(
    el("table", {},
      el("thead", {}, el("tr", {},
        ...["Worker", "Now", "KV cache", "Running", "Queue", "Speed"].map((name, i) =>
          el("th", { scope: "col", class: i > 2 ? "number" : null, "data-column": name.toLowerCase() }, name)))),
      LEGS.map((group, i) => el("tbody", { "data-leg": group.leg },
        el("tr", { class: "group" }, el("th", { scope: "rowgroup", colspan: 6 },
          el("strong", {}, group.title), ` ${group.says}`)),
        shown[i].length
          ? shown[i].sort((a, b) => a.id.localeCompare(b.id, "en", { numeric: true })).map((worker) => row(worker, group.leg))
          : el("tr", {}, el("td", { colspan: 6, class: "muted" }, missing(group.leg))),
        gone[i].slice(0, showsAllLost ? undefined : MAX_LOST).map((worker) => lostRow(worker, now)))),
    ),
  );
}

function missing(leg) {
  return leg === "prefill"
    ? "None. Decode workers read the prompts themselves."
    : "None. Requests wait until one comes.";
}

function row(worker, leg) {
  const used = Math.round(100 * worker.kv_usage);
  const fill = el("span", { class: worker.kv_usage > 0.9 ? "full" : null });
  fill.style.width = `${100 * worker.kv_usage}%`;
  const now = activity(worker, leg);
  return el("tr", { "data-worker": worker.id, "data-state": worker.state, "data-busy": String(now !== "idle") },
    el("th", { scope: "row", title: `since ${clock(worker.since)}` }, el("span", { class: "dot" }), worker.id,
      worker.legs.length > 1 && el("span", { class: "tag" }, "both legs")),
    el("td", { "data-column": "now" }, now),
    el("td", {}, el("span", { class: "meter", role: "img", "aria-label": `${used} % in use` }, fill), el("span", { class: "percent" }, `${used} %`)),
    el("td", { class: "number" }, count(worker.running)),
    el("td", { class: "number", "data-column": "queue" }, count(worker.waiting)),
    el("td", { class: "number", "data-column": "speed" }, speed(worker, leg)),
  );
}

function lostRow(worker, now) {
  const went = worker.in_flight ? ` · ${plural(worker.in_flight, "request")} went on elsewhere` : "";
  return el("tr", { class: "lost", "data-worker": worker.id, "data-state": worker.state },
    el("th", { scope: "row" }, el("span", { class: "dot" }), worker.id),
    el("td", { colspan: 5 }, el("b", {}, `${worker.state} ${clock(worker.at)}`), ` · ${ago(now - worker.at)} · ${worker.reason}${went}`));
}

function activity(worker, leg) {
  if (worker.state === "draining") return "draining";
  if (leg === "prefill") {
    // what the router waits for is known even while a long step keeps the worker from reporting
    const prompts = Math.max(worker.awaited, worker.running + worker.waiting);
    return prompts ? `reading ${plural(prompts, "prompt")}` : "idle";
  }
  return worker.running ? `writing ${plural(worker.running, "answer")}` : worker.waiting ? "waiting" : "idle";
}

function speed(worker, leg) {
  if (leg === "prefill") return worker.prefill_rate ? `${rate(worker.prefill_rate)} tok/s` : "–";
  return worker.decode_step_ms ? `${duration(worker.decode_step_ms)}/step` : "–";
}
