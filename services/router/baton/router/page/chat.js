// The conversation: asks, shows the answer as it comes, and says beneath it how it came.

import { ApiError, chat as ask, newRequestId } from "./api.js";
import { byId, count, duration, el, rate } from "./dom.js";
import { Answer, userMessage } from "./message.js";
import { words } from "./request_details.js";
import { markMine } from "./requests.js";
import { requestFields, systemPrompt } from "./settings.js";
import { chats, keepChat, openChatId, setOpenChatId } from "./storage.js";
import { isReplaying } from "./timeline.js";

const SUGGESTIONS = ["What is the capital of France?", "Tell me a story about a miller.", "What is 17 + 25?"];

const log = byId("log");
const question = byId("question");
const sendButton = byId("send");

let chat = newChat(); // as it is kept; without the system prompt
let running = null; // {abort, requestId, answer, facts, lost} of the answer that is coming
let newest = null; // the same, and of the last one that came
let onKeyRefused = null;

export function startChat(options) {
  onKeyRefused = options.onKeyRefused;
  byId("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    if (running) running.abort.abort();
    else submit();
  });
  question.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      if (!running) submit();
    }
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && running && !document.querySelector("dialog[open]")) running.abort.abort();
  });
  byId("new-chat").addEventListener("click", () => openChat(null));
  const open = openChatId();
  showChat(chats().find((each) => each.id === open) ?? newChat());
}

// Shows a chat that was kept, or a new one.
export function openChat(kept) {
  running?.abort.abort();
  showChat(kept ?? newChat());
  question.focus();
}

// What the router told of the last requests: whether the newest answer waits for another worker, or went on at one.
export function watchReplays(requests) {
  const request = newest && requests.find((each) => each.id === newest.requestId);
  if (!request) return;
  const reasons = request.attempts.map((attempt) => attempt.replay_reason).filter(Boolean);
  if (!reasons.length) return;
  newest.lost = `${words(reasons.at(-1))}, went on at ${request.attempts.at(-1).decode}`;
  if (running) newest.answer.setReplay(isReplaying(request) ? `${words(reasons.at(-1))}: the answer goes on at another worker…` : null);
  else newest.answer.setFacts([newest.facts, newest.lost].join(" · "));
}

function newChat() {
  return { id: newRequestId(), at: Date.now(), messages: [] };
}

function showChat(shown) {
  chat = shown;
  setOpenChatId(chat.id);
  if (!chat.messages.length) showWelcome();
  else log.replaceChildren(...chat.messages.map((message) => (message.role === "user" ? userMessage(message.content) : kept(message))));
  // only an answer that is the last message can be asked for again
  const buttons = [...log.querySelectorAll(".again")];
  if (chat.messages.at(-1)?.role === "assistant") buttons.pop();
  buttons.forEach((button) => button.remove());
  log.scrollTop = log.scrollHeight;
}

function kept(message) {
  const answer = new Answer();
  answer.text = message.content;
  answer.reasoning = String(message.reasoning ?? "");
  answer.setFacts(String(message.facts ?? ""));
  answer.end(() => again(answer.item));
  return answer.item;
}

function showWelcome() {
  log.replaceChildren(
    el("div", { class: "welcome" },
      el("p", { class: "lead" }, "Ask the model something."),
      el("p", { class: "muted" }, "A prefill worker reads what you write and hands its KV cache to a decode worker, which writes the answer. Each answer says how it came."),
      el("div", { class: "suggestions" }, SUGGESTIONS.map((text) => el("button", { type: "button", onclick: () => submit(text) }, text)))));
}

function submit(text = question.value) {
  if (!text.trim() || running) return;
  question.value = "";
  if (!chat.messages.length) log.replaceChildren();
  chat.messages.push({ role: "user", content: text });
  keep(chat);
  log.append(userMessage(text));
  answer();
}

function again(item) {
  if (running) return;
  // the last answer alone is asked for again
  if (chat.messages.at(-1)?.role === "assistant") chat.messages.pop();
  item.remove();
  answer();
  question.focus();
}

async function answer() {
  const shown = new Answer();
  const asked = chat; // another one may be opened meanwhile
  shown.setFacts("waiting for the first token…");
  log.querySelectorAll(".again").forEach((button) => button.remove());
  log.append(shown.item);
  scrollDown(true);
  const mine = { abort: new AbortController(), requestId: newRequestId(), answer: shown };
  newest = mine;
  setRunning(mine);
  markMine(mine.requestId);
  const times = { sent: performance.now(), first: null, last: null, pieces: 0 };
  const { seen, end, error } = await listen(ask(body(), mine.requestId, mine.abort.signal), shown, times);
  if (error) shown.fail(error instanceof ApiError ? `${error.status} · ${error.message}` : error.message);
  mine.facts = told(seen, times, end);
  const facts = [mine.facts, mine.lost].filter(Boolean).join(" · ");
  shown.setFacts(facts);
  shown.end(() => again(shown.item));
  if (shown.text || shown.reasoning) {
    asked.messages.push({ role: "assistant", content: shown.text, facts, ...(shown.reasoning ? { reasoning: shown.reasoning } : {}) });
    keep(asked);
  }
  scrollDown(true);
  if (running === mine) setRunning(null);
  if (error?.status === 401) onKeyRefused();
}

function body() {
  const system = systemPrompt();
  const messages = chat.messages.map(({ role, content }) => ({ role, content }));
  return { ...requestFields(), messages: [...(system ? [{ role: "system", content: system }] : []), ...messages] };
}

// Shows an answer as it comes; gives what was told beside its text, and how it ended.
async function listen(parts, shown, times) {
  let seen = { route: null, usage: null };
  try {
    for await (const part of parts) {
      seen = { ...seen, ...part };
      if (!part.text && !part.reasoning) continue;
      times.last = performance.now();
      times.first ??= times.last;
      times.pieces += 1;
      const follows = isAtEnd();
      shown.add(part.text, part.reasoning, () => scrollDown(follows));
      if (times.pieces === 1) shown.setFacts(told(seen, times, null));
    }
    return { seen, end: seen.finish === "length" ? "ended by max tokens" : null };
  } catch (error) {
    return error.name === "AbortError" ? { seen, end: "stopped" } : { seen, end: null, error };
  }
}

function keep(changed) {
  changed.at = Date.now();
  keepChat(changed);
}

function isAtEnd() {
  return log.scrollHeight - log.scrollTop - log.clientHeight < 40;
}

function scrollDown(follows) {
  if (follows) log.scrollTop = log.scrollHeight;
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

function setRunning(next) {
  running = next;
  log.setAttribute("aria-busy", String(next !== null));
  sendButton.textContent = next ? "Stop" : "Send";
  sendButton.classList.toggle("stop", next !== null);
}
