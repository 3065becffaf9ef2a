// KV on its way from prefill to decode workers: for each pair the last transfer, and all of them together.

import { ago, byId, count, duration, el, nbytes, plural } from "./dom.js";

const MAX_SHOWN = 6;

export function showTransfers({ transfers, now }) {
  byId("transfers-section").hidden = !transfers.length;
  const shown = transfers.toSorted((a, b) => b.last_at - a.last_at).slice(0, MAX_SHOWN);
  byId("transfers").replaceChildren(el("table", {}, el("tbody", {}, shown.map((pair) => row(pair, now)))));
}

function row(pair, now) {
  return el("tr", { "data-fresh": String(now - pair.last_at < 2) },
    el("th", { scope: "row" }, el("b", { "data-leg": "prefill" }, pair.prefill), " → ", el("b", { "data-leg": "decode" }, pair.decode)),
    el("td", {}, `${nbytes(pair.last_bytes)} in ${duration(pair.last_ms)}`, el("span", { class: "muted" }, ` · ${plural(pair.last_tokens, "token")} · ${ago(now - pair.last_at)}`)),
    el("td", { class: "number muted" }, `${nbytes(pair.bytes)} in ${count(pair.count)} so far`));
}
