// Starts the page: asks the router what there is once a second, while somebody looks.

import { ApiError, get, hasKey, setKey } from "./api.js";
import { setModel, startChat } from "./chat.js";
import { byId } from "./dom.js";
import { LIMIT, showRequests } from "./requests.js";
import { showWorkers } from "./workers.js";

const INTERVAL_MS = 1000;
const SLOWEST_MS = 5000;

let model = null;
let isPaused = false;
let failures = 0;
let timer = null;
let isAsking = false;
let isDeclined = false;

async function refresh() {
  clearTimeout(timer);
  if (isAsking || document.hidden) return;
  isAsking = true;
  try {
    if (model === null) {
      const names = (await get("v1/models")).data.map((card) => card.id);
      [model] = names;
      byId("model").textContent = model;
      document.title = `Baton · ${model}`;
      setModel(model);
    }
    const [{ workers }, requests] = await Promise.all([get("debug/workers"), get(`debug/requests?limit=${LIMIT}`)]);
    failures = 0;
    showWorkers(workers);
    if (!isPaused) showRequests(requests);
    const canAnswer = workers.some((worker) => worker.legs.includes("decode") && worker.state === "live");
    setStatus(canAnswer ? "ready" : "waiting", canAnswer ? "Ready" : "No decode worker");
  } catch (error) {
    if (error instanceof ApiError && error.status === 401) {
      setStatus("locked", "API key needed");
      if (!isDeclined) askForKey(hasKey() ? error.message : null);
      return;
    }
    failures += 1;
    setStatus("gone", error instanceof ApiError ? error.message : "Router gone, reconnecting…");
  } finally {
    isAsking = false;
  }
  timer = setTimeout(refresh, Math.min(INTERVAL_MS * 2 ** Math.max(failures - 1, 0), SLOWEST_MS));
}

function setStatus(state, text) {
  const status = byId("status");
  if (status.textContent !== text) status.textContent = text;
  status.dataset.state = state;
  byId("system-state").classList.toggle("stale", state === "gone" || state === "locked");
  if (state !== "locked") byId("key-button").hidden = true;
}

// Asks for the key in a dialog; what is entered is kept for this tab, and tried.
function askForKey(reason = null) {
  const dialog = byId("key-dialog");
  if (dialog.open) return;
  if (reason) byId("key-reason").textContent = reason;
  byId("key").value = "";
  byId("key-button").hidden = true;
  dialog.showModal();
}

byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  setKey(byId("key").value.trim());
  isDeclined = false;
  byId("key-dialog").close("entered");
  refresh();
});
byId("key-cancel").addEventListener("click", () => byId("key-dialog").close("declined"));
byId("key-dialog").addEventListener("cancel", () => (byId("key-dialog").returnValue = "declined"));
byId("key-dialog").addEventListener("close", () => {
  isDeclined = byId("key-dialog").returnValue !== "entered";
  byId("key-button").hidden = !isDeclined;
});
byId("key-button").addEventListener("click", () => askForKey());
byId("pause").addEventListener("click", (event) => {
  isPaused = !isPaused;
  event.currentTarget.setAttribute("aria-pressed", String(isPaused));
  event.currentTarget.textContent = isPaused ? "Resume" : "Pause";
  refresh();
});
document.addEventListener("visibilitychange", refresh);

startChat({ onKeyRefused: refresh });
refresh();
