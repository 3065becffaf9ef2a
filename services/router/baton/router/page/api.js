// The router's HTTP API, with the key if one is needed. Paths are relative: the router may live under a prefix.

const KEY = "baton.key";

export class ApiError extends Error {
  constructor(status, body) {
    super(body?.error?.message ?? `The router answered ${status}.`);
    this.status = status;
    this.code = body?.error?.code ?? null;
  }
}

// The router does not answer at all.
class Unreachable extends Error {}

export function setKey(key) {
  if (key) sessionStorage.setItem(KEY, key);
  else sessionStorage.removeItem(KEY);
}

export function hasKey() {
  return sessionStorage.getItem(KEY) !== null;
}

async function send(path, options = {}) {
  const key = sessionStorage.getItem(KEY);
  const headers = { ...options.headers, ...(key ? { authorization: `Bearer ${key}` } : {}) };
  let response;
  try {
    response = await fetch(path, { ...options, headers, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Unreachable("The router does not answer.");
  }
  if (!response.ok) throw new ApiError(response.status, await response.json().catch(() => null));
  return response;
}

export async function get(path) {
  const response = await send(path, { signal: AbortSignal.timeout(5000) }).catch((error) => {
    throw error.name === "AbortError" || error.name === "TimeoutError" ? new Unreachable("The router does not answer.") : error;
  });
  return response.json();
}

export function newRequestId() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

// Streams one answer. Gives, in this order: {route}, {text, reasoning, finish} ..., {usage}; throws what the API says.
export async function* chat(body, requestId, signal) {
  const response = await send("v1/chat/completions", {
    method: "POST",
    headers: { "content-type": "application/json", "x-baton-explain": "1", "x-request-id": requestId },
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
  yield { route: readRoute(response.headers.get("x-baton-route")) };
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ApiError(response.status, chunk);
    const choice = chunk.choices[0];
    if (choice) yield { text: choice.delta.content ?? "", reasoning: choice.delta.reasoning_content ?? "", finish: choice.finish_reason };
    if (chunk.usage) yield { usage: chunk.usage };
  }
  throw new Unreachable("The answer broke off.");
}

async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    let piece;
    try {
      piece = await reader.read();
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Unreachable("The answer broke off: the router does not answer any more.");
    }
    if (piece.done) return;
    const parts = (rest + piece.value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      if (part.startsWith("data: ")) yield part.slice(6);
    }
  }
}

// "path=remote; decode=d0; prefill=p0; cost_ms=3.0; prefill=2.1" → {decode: "d0", prefill: "p0"}; costs follow cost_ms
function readRoute(header) {
  if (!header) return null;
  const named = header.split("; cost_ms=")[0].split("; ").map((part) => part.split("="));
  return Object.fromEntries(named);
}
