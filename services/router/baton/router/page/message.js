// How the two sides of a conversation look. An answer is shown while it comes.

import { copyButton } from "./copy.js";
import { el } from "./dom.js";
import { Markdown } from "./markdown.js";

export function userMessage(text) {
  return el("article", { class: "message user", "aria-label": "You" }, el("p", {}, text));
}

export class Answer {
  text = "";
  reasoning = "";
  #body = el("div", { class: "markdown" });
  #thought = el("p");
  #facts = el("p", { class: "facts muted" });
  #moving = el("div", { class: "moving", hidden: true });
  #markdown = new Markdown(this.#body);
  #isDrawn = true;
  #drawMs = 0;

  constructor() {
    this.item = el("article", { class: "message answer", "aria-label": "Answer" }, this.#body, this.#moving, this.#facts);
  }

  // Takes what has come; it is drawn with the next frame, however many pieces come until then. What is slow to draw is drawn
  // less often, so that most of the time is left for the rest of the page.
  add(text, reasoning, afterDrawing) {
    this.text += text;
    this.reasoning += reasoning;
    if (!this.#isDrawn) return;
    this.#isDrawn = false;
    const draw = () => {
      this.draw();
      afterDrawing();
    };
    if (this.#drawMs < 10) requestAnimationFrame(draw);
    else setTimeout(draw, 3 * this.#drawMs);
  }

  draw() {
    const began = performance.now();
    this.#isDrawn = true;
    this.#markdown.show(this.text);
    this.#drawMs = performance.now() - began;
    if (!this.reasoning) return;
    if (!this.#thought.parentNode) this.item.prepend(el("details", { class: "thoughts" }, el("summary", {}, "Thoughts"), this.#thought));
    this.#thought.textContent = this.reasoning;
  }

  setFacts(text) {
    this.#facts.textContent = text;
  }

  // While a worker is lost and another one takes over: why nothing comes.
  setReplay(text) {
    if (this.#moving.hidden === !text) return;
    this.#moving.hidden = !text;
    this.#moving.replaceChildren(...(text ? [el("p", { role: "status" }, text), el("div", { class: "track" }, el("span"))] : []));
  }

  fail(text) {
    this.item.classList.add("failed");
    this.item.insertBefore(el("p", { class: "error", role: "alert" }, text), this.#facts);
  }

  // It has all come: what can be done with it now.
  end(again) {
    this.draw();
    this.setReplay(null);
    const retry = el("button", { type: "button", class: "link again", onclick: again }, this.item.classList.contains("failed") ? "Try again" : "Regenerate");
    this.item.append(el("div", { class: "done" }, this.text && copyButton(() => this.text, "Copy answer"), retry));
  }
}
