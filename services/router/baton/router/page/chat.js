// The conversation: asks, shows the answer as it comes, and says beneath it how it came.

import { ApiError, chat, newRequestId } from "./api.js";
import { byId, count, duration, el, rate } from "./dom.js";
import { markMine } from "./requests.js";

const SUGGESTIONS = ["What is the capital of France?", "Tell me a story about a miller.", "What is 17 + 25?"];

const log = byId("log");
const question = byId("question");
const sendButton = byId("send");

let messages = []; // what the model is sent, without the system prompt
let running = null; // AbortController of the answer that is coming
let model = null;
let onKeyRefused = null;

export function startChat(options) {
  onKeyRefused = options.onKeyRefused;
  byId("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    if (running) running.abort();
    else submit();
  });
  question.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      if (!running) submit();
    }
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && running) running.abort();
  });
  byId("new-chat").addEventListener("click", () => {
    running?.abort();
    messages = [];
    showEmpty();
    question.focus();
  });
  byId("settings-button").addEventListener("click", (event) => {
    const settings = byId("settings");
    settings.hidden = !settings.hidden;
    event.currentTarget.setAttribute("aria-expanded", String(!settings.hidden));
  });
  byId("settings").addEventListener("submit", (event) => event.preventDefault());
  showEmpty();
}

export function setModel(name) {
  model = name;
}

function showEmpty() {
  log.replaceChildren(
    el("div", { class: "welcome" },
      el("p", { class: "lead" }, "Ask the model something."),
      el("p", { class: "muted" }, "A prefill worker reads what you write and hands its KV cache to a decode worker, which writes the answer. Each answer says how it came."),
      el("div", { class: "suggestions" }, SUGGESTIONS.map((text) => el("button", { type: "button", onclick: () => submit(text) }, text)))));
}

function submit(text = question.value) {
  if (!text.trim() || running) return;
  question.value = "";
  if (!messages.length) log.replaceChildren();
  messages.push({ role: "user", content: text });
  log.append(el("article", { class: "message user", "aria-label": "You" }, el("p", {}, text)));
  answer();
}

function settings() {
  const [system, temperature, maxTokens] = ["system", "temperature", "max-tokens"].map((id) => byId(id).value.trim());
  return {
    model,
    messages: [...(system ? [{ role: "system", content: system }] : []), ...messages],
    ...(temperature ? { temperature: Number(temperature) } : {}),
    ...(maxTokens ? { max_tokens: Number(maxTokens) } : {}),
  };
}

async function answer() {
  const text = document.createTextNode("");
  const facts = el("p", { class: "facts muted" }, "waiting for the first token…");
  const item = el("article", { class: "message answer", "aria-label": "Answer" }, el("p", {}, text), facts);
  log.querySelector(".again")?.remove();
  log.append(item);
  setRunning(new AbortController());
  const requestId = newRequestId();
  markMine(requestId);
  const times = { sent: performance.now(), first: null, last: null, pieces: 0 };
  let seen = { route: null, usage: null };
  let end = null;
  try {
    for await (const part of chat(settings(), requestId, running.signal)) {
      seen = { ...seen, ...part };
      if (part.text) {
        times.last = performance.now();
        times.first ??= times.last;
        times.pieces += 1;
        const follows = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
        text.appendData(part.text);
        if (follows) log.scrollTop = log.scrollHeight;
        if (times.pieces === 1) facts.textContent = told(seen, times, null);
      }
    }
    if (seen.finish === "length") end = "ended by max tokens";
  } catch (error) {
    if (error.name === "AbortError") {
      end = "stopped";
    } else {
      item.classList.add("failed");
      item.insertBefore(el("p", { class: "error", role: "alert" }, error instanceof ApiError ? `${error.status} · ${error.message}` : error.message), facts);
      if (error.status === 401) onKeyRefused();
    }
  }
  facts.textContent = told(seen, times, end);
  if (text.data) messages.push({ role: "assistant", content: text.data });
  else item.firstChild.remove();
  if (item.isConnected) {
    item.append(el("button", { type: "button", class: "link again", onclick: () => again(item) }, item.classList.contains("failed") ? "Try again" : "Regenerate"));
    log.scrollTop = log.scrollHeight;
  }
  setRunning(null);
}

function again(item) {
  if (running) return;
  if (messages.at(-1)?.role === "assistant") messages.pop();
  item.remove();
  answer();
  question.focus();
}

function told({ route, usage }, times, end) {
  const parts = [];
  if (route) parts.push(route.prefill ? `${route.prefill} → ${route.decode}` : route.decode);
  if (times.first !== null) parts.push(`first token ${duration(times.first - times.sent)}`);
  const tokens = usage?.completion_tokens ?? times.pieces;
  const seconds = (times.last - times.first) / 1000;
  if ((usage || end) && tokens > 1 && seconds > 0) parts.push(`${rate((tokens - 1) / seconds)} tokens/s`);
  if (usage) {
    const cached = usage.prompt_tokens_details?.cached_tokens ?? 0;
    parts.push(`${count(usage.completion_tokens)} tokens`, `cached ${count(cached)} of ${count(usage.prompt_tokens)}`);
  }
  if (end) parts.push(end);
  return parts.join(" · ");
}

function setRunning(controller) {
  running = controller;
  log.setAttribute("aria-busy", String(controller !== null));
  sendButton.textContent = controller ? "Stop" : "Send";
  sendButton.classList.toggle("stop", controller !== null);
}
