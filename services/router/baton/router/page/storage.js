// What this page keeps in the browser: chats and settings. Never the key. A browser may refuse all of it.

const CHATS = "baton.chats";
const SETTINGS = "baton.settings";
const OPEN = "baton.chat";
const MAX_CHATS = 50;

// Chats, the last used first: {id, at, messages: [{role, content, reasoning?, facts?}]}.
export function chats() {
  const found = read(localStorage, CHATS);
  return Array.isArray(found) ? found.filter(isChat) : [];
}

export function keepChat(chat) {
  const others = chats().filter((each) => each.id !== chat.id);
  writeChats([chat, ...others].slice(0, MAX_CHATS));
}

export function forgetChat(id) {
  writeChats(chats().filter((each) => each.id !== id));
}

export function forgetAllChats() {
  localStorage.removeItem(CHATS);
}

// The id of the chat that this tab shows: a reload shows it again.
export function openChatId() {
  return read(sessionStorage, OPEN);
}

export function setOpenChatId(id) {
  write(sessionStorage, OPEN, id);
}

export function settings() {
  const found = read(localStorage, SETTINGS);
  return found !== null && typeof found === "object" ? found : {};
}

export function keepSettings(values) {
  write(localStorage, SETTINGS, values);
}

function writeChats(kept) {
  // a browser gives some megabytes: the oldest chats make room
  while (!write(localStorage, CHATS, kept) && kept.length > 1) kept = kept.slice(0, Math.floor(kept.length / 2));
}

function isChat(chat) {
  return typeof chat?.id === "string" && typeof chat.at === "number" && Array.isArray(chat.messages) && chat.messages.every((each) => typeof each?.role === "string" && typeof each.content === "string");
}

function read(storage, name) {
  try {
    return JSON.parse(storage.getItem(name));
  } catch {
    return null;
  }
}

function write(storage, name, value) {
  try {
    storage.setItem(name, JSON.stringify(value));
    return true;
  } catch {
    return false;
  }
}
