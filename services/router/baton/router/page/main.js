// Starts the page: asks the router what there is once a second, while somebody looks.

import { ApiError, get } from "./api.js";
import { startChat, watchReplays } from "./chat.js";
import { startChatList } from "./chat_list.js";
import { byId } from "./dom.js";
import { askForKey, showKeyButton, startKeyDialog } from "./key_dialog.js";
import { LIMIT, showRequests } from "./requests.js";
import { setModels, startSettings } from "./settings.js";
import { startTabs } from "./tabs.js";
import { showTotals } from "./totals.js";
import { showTransfers } from "./transfers.js";
import { showWorkers, startWorkers } from "./workers.js";

const INTERVAL_MS = 1000;
const SLOWEST_MS = 5000;
const TOTALS_EVERY = 3; // rounds; the router makes a point each five seconds
const MODELS_EVERY = 60;

let round = 0;
let isPaused = false;
let failures = 0;
let timer = null;
let isAsking = false;

async function refresh() {
  clearTimeout(timer);
  if (isAsking || document.hidden) return;
  isAsking = true;
  try {
    await show();
    failures = 0;
    round += 1;
  } catch (error) {
    round = 0;
    if (error instanceof ApiError && error.status === 401) {
      setStatus("locked", "API key needed");
      askForKey(error.message);
      return; // until a key is entered
    }
    if (!(error instanceof ApiError) && error.name !== "Error") console.error(error);
    failures += 1;
    setStatus("gone", error instanceof ApiError ? error.message : "Router gone, reconnecting…");
  } finally {
    isAsking = false;
  }
  timer = setTimeout(refresh, Math.min(INTERVAL_MS * 2 ** Math.max(failures - 1, 0), SLOWEST_MS));
}

async function show() {
  if (round % MODELS_EVERY === 0) setModels((await get("v1/models")).data);
  const [told, requests, history] = await Promise.all([
    get("debug/workers"), get(`debug/requests?limit=${LIMIT}`), round % TOTALS_EVERY === 0 ? get("debug/history") : null,
  ]);
  showWorkers(told);
  showTransfers(told);
  if (history) showTotals(history);
  if (!isPaused) showRequests(requests);
  watchReplays(requests.requests);
  const canAnswer = told.workers.some((worker) => worker.legs.includes("decode") && worker.state === "live");
  setStatus(canAnswer ? "ready" : "waiting", canAnswer ? "Ready" : "No decode worker");
}

function setStatus(state, text) {
  const status = byId("status");
  if (status.textContent !== text) status.textContent = text;
  status.dataset.state = state;
  byId("system-state").classList.toggle("stale", state === "gone" || state === "locked");
  showKeyButton(state === "locked");
}

byId("pause").addEventListener("click", (event) => {
  isPaused = !isPaused;
  event.currentTarget.setAttribute("aria-pressed", String(isPaused));
  event.currentTarget.textContent = isPaused ? "Resume" : "Pause";
  refresh();
});
document.addEventListener("visibilitychange", refresh);

startTabs();
startSettings();
startKeyDialog(refresh);
startChat({ onKeyRefused: refresh });
startChatList();
startWorkers();
refresh();
