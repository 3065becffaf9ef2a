// The chats that are kept in this browser: opened again, forgotten one by one or all at once. Beside it, the settings' panel.

import { openChat } from "./chat.js";
import { byId, clock, el, plural } from "./dom.js";
import { chats, forgetAllChats, forgetChat } from "./storage.js";

export function startChatList() {
  for (const [button, panel] of [["settings-button", "settings"], ["history-button", "history"]]) {
    byId(button).addEventListener("click", () => {
      toggle(button, panel, byId(panel).hidden);
      if (panel === "history") show();
    });
  }
  byId("clear-history").addEventListener("click", clear);
}

function toggle(button, panel, isOpen) {
  byId(panel).hidden = !isOpen;
  byId(button).setAttribute("aria-expanded", String(isOpen));
}

function show() {
  const kept = chats();
  byId("chats").replaceChildren(...kept.map((chat) => el("li", {},
    el("button", { type: "button", class: "open-chat", onclick: () => open(chat) },
      el("span", {}, title(chat)), el("span", { class: "muted" }, when(chat.at))),
    el("button", { type: "button", class: "quiet", "aria-label": `Forget ${title(chat)}`, onclick: () => forget(chat) }, "×"))));
  byId("history-note").textContent = kept.length ? `${plural(kept.length, "chat")}, kept in this browser only.` : "No chat is kept yet.";
  byId("clear-history").hidden = !kept.length;
  byId("clear-history").textContent = "Clear all";
}

function open(chat) {
  toggle("history-button", "history", false);
  openChat(chat);
}

function forget(chat) {
  forgetChat(chat.id);
  show();
  byId("history-button").focus();
}

// The first press asks, the second one clears.
function clear(event) {
  const isAsked = event.currentTarget.textContent !== "Clear all";
  if (!isAsked) {
    event.currentTarget.textContent = `Forget ${plural(chats().length, "chat")}?`;
    return;
  }
  forgetAllChats();
  openChat(null);
  show();
}

function title(chat) {
  const text = chat.messages[0]?.content.trim() ?? "";
  return text.length > 60 ? `${text.slice(0, 59)}…` : text || "Empty chat";
}

function when(at) {
  const date = new Date(at);
  return date.toDateString() === new Date().toDateString() ? clock(at / 1000) : date.toLocaleDateString();
}
