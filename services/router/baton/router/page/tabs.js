// On a narrow screen chat, workers and requests are tabs; on a wide one all three are shown, and there are no tabs.

import { byId } from "./dom.js";

const NARROW = matchMedia("(max-width: 860px)");
const tabs = [...byId("tabs").children];
const panels = tabs.map((tab) => byId(tab.getAttribute("aria-controls")));
let selected = 0;

export function startTabs() {
  tabs.forEach((tab, i) => {
    tab.addEventListener("click", () => select(i));
    tab.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (step) select((i + step + tabs.length) % tabs.length, true);
    });
  });
  NARROW.addEventListener("change", show);
  show();
}

function select(i, isFocused = false) {
  selected = i;
  show();
  if (isFocused) tabs[i].focus();
}

function show() {
  const isNarrow = NARROW.matches;
  byId("tabs").hidden = !isNarrow;
  tabs.forEach((tab, i) => {
    tab.setAttribute("aria-selected", String(i === selected));
    tab.tabIndex = i === selected ? 0 : -1;
    panels[i].hidden = isNarrow && i !== selected;
    for (const [name, value] of [["role", "tabpanel"], ["aria-label", tab.textContent]]) {
      if (isNarrow) panels[i].setAttribute(name, value);
      else panels[i].removeAttribute(name);
    }
  });
  byId("system-state").hidden = isNarrow && selected === 0;
}
