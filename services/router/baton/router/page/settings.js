// How answers are asked for: the model, and the form of sampling settings. Kept in the browser.

import { byId, el } from "./dom.js";
import { keepSettings, settings } from "./storage.js";

const NUMBERS = ["temperature", "top_p", "max_tokens", "seed"];
const form = byId("settings");
const model = byId("model");

export function startSettings() {
  const kept = settings();
  for (const field of fields()) field.value = typeof kept[field.name] === "string" ? kept[field.name] : "";
  form.addEventListener("input", keep);
  form.addEventListener("reset", () => setTimeout(keep)); // the fields are emptied after this event
  form.addEventListener("submit", (event) => event.preventDefault());
  model.addEventListener("change", keep);
  keep();
}

// Cards of /v1/models. The one that was chosen stays chosen while it is served; what a model draws with by default is shown.
export function setModels(cards) {
  const defaults = cards[0]?.default_sampling_params ?? {};
  for (const name of NUMBERS) {
    if (defaults[name] !== undefined) form.elements[name].placeholder = `${defaults[name]}, the model's`;
  }
  const names = cards.map((card) => card.id);
  if (names.join("\n") === [...model.options].map((option) => option.value).join("\n")) return;
  const wanted = model.value || settings().model;
  model.replaceChildren(...names.map((name) => el("option", { value: name }, name)));
  if (names.includes(wanted)) model.value = wanted;
  document.title = `Baton · ${model.value}`;
}

// The fields of a request that are set.
export function requestFields() {
  const values = Object.fromEntries(fields().map((field) => [field.name, field.value]));
  const numbers = NUMBERS.filter((name) => values[name].trim()).map((name) => [name, Number(values[name])]);
  const stop = values.stop.split("\n").filter(Boolean).map((line) => line.replaceAll("\\n", "\n"));
  const named = model.value ? { model: model.value } : {}; // until models are known the router takes its first
  return { ...named, ...Object.fromEntries(numbers), ...(stop.length ? { stop } : {}) };
}

export function systemPrompt() {
  return form.elements.system.value.trim();
}

function fields() {
  return [...form.elements].filter((field) => field.name);
}

function keep() {
  const set = fields().filter((field) => field.value.trim());
  keepSettings({ model: model.value || settings().model, ...Object.fromEntries(set.map((field) => [field.name, field.value])) });
  byId("settings-button").textContent = set.length ? `Settings (${set.length})` : "Settings";
  if (model.value) document.title = `Baton · ${model.value}`;
}
