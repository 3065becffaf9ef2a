// The dialog that asks for the API key. What is entered is kept for this tab, and tried.

import { hasKey, setKey } from "./api.js";
import { byId } from "./dom.js";

const dialog = byId("key-dialog");
const button = byId("key-button");
let isDeclined = false;

export function startKeyDialog(onEntered) {
  byId("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    setKey(byId("key").value.trim());
    dialog.close("entered");
    onEntered();
  });
  byId("key-cancel").addEventListener("click", () => dialog.close("declined"));
  dialog.addEventListener("cancel", () => (dialog.returnValue = "declined"));
  dialog.addEventListener("close", () => {
    isDeclined = dialog.returnValue !== "entered";
    showKeyButton(isDeclined);
  });
  button.addEventListener("click", () => open(null));
}

// The router wants a key, or another one. Who has declined is not asked again.
export function askForKey(reason) {
  if (!isDeclined) open(hasKey() ? reason : null);
}

export function showKeyButton(isNeeded) {
  button.hidden = !isNeeded && !hasKey();
  button.textContent = isNeeded ? "Enter API key" : "API key";
}

function open(reason) {
  if (dialog.open) return;
  if (reason) byId("key-reason").textContent = reason;
  byId("key").value = "";
  dialog.returnValue = "";
  dialog.showModal();
}
