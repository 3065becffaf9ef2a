// What goes through the router: the last minute in numbers, the last 15 minutes as curves.

import { bars, curve } from "./curve.js";
import { byId, clock, count, duration, el, plural, rate } from "./dom.js";

const CARDS = [
  { title: "Requests/s", lines: ["requests_per_s"], says: (told) => [["", rate(told.requests_per_s)]], at: ([value]) => `${rate(value)}/s` },
  { title: "Tokens/s", lines: ["tokens_per_s"], says: (told) => [["", rate(told.tokens_per_s)]], at: ([value]) => `${rate(value)}/s` },
  { title: "First token", lines: ["first_token_p50_ms", "first_token_p99_ms"], says: (told) => pair(told, "first_token"), at: bothAt },
  { title: "Gap of tokens", lines: ["gap_p50_ms", "gap_p99_ms"], says: (told) => pair(told, "gap"), at: bothAt },
];
const FAILURES = { errors: "error", refusals: "refused", replays: "replay" };

const FEWEST_POINTS = 24; // a router that has just begun shows two minutes, then more of them, up to fifteen

export function showTotals(told) {
  const history = { ...told, length: Math.max(told.points.at.length, FEWEST_POINTS) };
  byId("totals-span").textContent = `curves: ${plural(Math.round((history.length * told.interval_s) / 60), "minute")}`;
  byId("totals").replaceChildren(...CARDS.map((card) => measured(card, history)), failures(history));
}

function measured({ title, lines, says, at }, { minute, points, length }) {
  const values = lines.map((name) => points[name]);
  const said = says(minute);
  const most = Math.max(...values.flat().filter((value) => value !== null), 0);
  const picture = curve(values, length, `${title}: ${said.map((each) => each.join(" ")).join(", ")} in the last minute; at most ${at(values.map(() => most))} since`);
  const card = el("div", { class: "card" }, el("p", { class: "card-title" }, title), numbers(said), picture);
  readAlong(picture, card.firstChild, length, points.at, (j) => (values.every((list) => list[j] === null) ? "nothing" : at(values.map((list) => list[j]))));
  return card;
}

function failures({ all, points, length }) {
  const kinds = Object.fromEntries(Object.entries(FAILURES).map(([name, kind]) => [kind, points[name]]));
  const said = [["errors", count(all.errors)], ["refused", count(all.refusals)], ["replays", count(all.replays)]];
  const picture = bars(kinds, length, `In 15 minutes: ${said.map(([name, number]) => `${number} ${name}`).join(", ")}`);
  const card = el("div", { class: "card failures" }, el("p", { class: "card-title" }, "In 15 minutes"), numbers(said), picture);
  card.querySelectorAll(".figure").forEach((figure, i) => {
    figure.dataset.kind = Object.values(FAILURES)[i];
    figure.dataset.isNone = String(said[i][1] === "0");
  });
  readAlong(picture, card.firstChild, length, points.at, (j) => Object.entries(kinds).map(([kind, values]) => `${count(values[j])} ${kind}`).join(", "));
  return card;
}

function numbers(said) {
  return el("p", { class: "figures" }, said.map(([name, value]) => el("span", { class: "figure" }, el("b", {}, value), name && el("span", { class: "muted" }, ` ${name}`))));
}

function pair(told, name) {
  return [["p50", duration(told[`${name}_p50_ms`])], ["p99", duration(told[`${name}_p99_ms`])]];
}

function bothAt([p50, p99]) {
  return `${duration(p50)}, p99 ${duration(p99)}`;
}

// Under the pointer, the value of a point and its time, in place of the title.
function readAlong(picture, line, length, times, says) {
  const title = line.textContent;
  picture.addEventListener("pointermove", (event) => {
    const box = picture.getBoundingClientRect();
    const j = Math.round(((event.clientX - box.left) / box.width) * length) - (length - times.length);
    line.textContent = times[j] === undefined ? title : `${clock(times[j])}  ${says(j)}`;
  });
  picture.addEventListener("pointerleave", () => (line.textContent = title));
}
