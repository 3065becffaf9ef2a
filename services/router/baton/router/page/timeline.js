// A request as a picture. Left: from arrival to the first token; right: from there to the end. The upper lane is the
// prefill worker, the lower one the decode worker, so a row shows who did what, and what overlapped.

import { duration, svg } from "./dom.js";

const LANES = { prefill: 2, decode: 12 };
const LANE_HEIGHT = 7;
const HEIGHT = 21;
export const PHASES = { queue: "queue", prefill: "prefill", transfer: "KV transfer", decode: "decode" };

// What is drawn of a request, in ms from its arrival: `split` is the first token, or now.
export function view(request, now) {
  const elapsed = Math.max(1000 * (now - request.at), 0);
  const end = request.total_ms ?? elapsed;
  const hasToken = request.first_token_ms !== null;
  return { request, end, hasToken, split: hasToken ? request.first_token_ms : end };
}

// The right edge of an axis, a round number; a lone slow request does not flatten all others, it is cut.
export function scale(values) {
  const sorted = values.filter((value) => value > 0).sort((a, b) => a - b);
  if (!sorted.length) return 1;
  const most = sorted.at(-1);
  const usual = sorted[Math.floor(0.8 * (sorted.length - 1))];
  const top = most > 4 * usual ? 2 * usual : most;
  const unit = 10 ** Math.floor(Math.log10(top));
  return unit * [1, 1.5, 2, 3, 4, 5, 6, 8, 10].find((step) => step * unit >= top * 0.999);
}

// Whether a worker was lost and the next one has not begun to write.
export function isReplaying(request) {
  const last = request.attempts.at(-1);
  if (request.total_ms !== null || !last) return false;
  return last.replay_reason !== null || (request.attempts.length > 1 && !last.spans.some((span) => span.kind === "decode"));
}

// One half of a row: side 0 until the first token, side 1 from it.
export function drawing(each, most, side) {
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
  if (isReplaying(request) && side === Number(hasToken)) picture.append(replay(request, at, end));
  if (!side && hasToken && split <= most) picture.append(svg("rect", { class: "first", x: at(split), width: 2, y: 0, height: HEIGHT }));
  if (to - from > most) picture.append(svg("text", { class: "cut", x: "100%", y: HEIGHT - 2, "text-anchor": "end" }, "»"));
  return picture;
}

// From the loss until now: a bar whose stripes move. It is drawn anew each second, so its motion begins where it was.
function replay(request, at, end) {
  const lost = request.attempts.findLast((attempt) => attempt.replay_reason);
  const y = LANES.decode + LANE_HEIGHT / 2;
  const bar = svg("line", { class: "replaying", x1: at(lost?.ended_ms ?? 0), x2: at(end), y1: y, y2: y, "stroke-width": LANE_HEIGHT });
  bar.style.animationDelay = `${-(performance.now() % 1000)}ms`;
  return bar;
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
