/** What one sees of one conversation, live or recorded: its timeline and its transcript. */

import { Timeline } from "./timeline.js";
import { Transcript } from "./transcript.js";

const NAMES = {
  duplex: ["Duplex", "listens while it speaks"],
  turns: ["Turn by turn", "deaf while it speaks; answers when you press Enter"],
  vad: ["Voice activity", "any sound stops it; silence starts it"],
  recorded: ["Recorded", ""],
};

export class View {
  timeline;
  #transcript;
  #section;
  #status;
  #title;

  /** Made from `template` and put at the end of `place`. `onmove`: it has to be drawn again. */
  constructor(kind, template, place, tooltip, onmove) {
    this.#section = template.content.firstElementChild.cloneNode(true);
    place.append(this.#section);
    this.#title = this.#section.querySelector(".kind");
    this.#status = this.#section.querySelector(".status");
    const canvas = this.#section.querySelector("canvas");
    canvas.setAttribute("aria-label", `timeline, ${NAMES[kind][0]}: arrows move it, + and - zoom, End follows`);
    this.timeline = new Timeline(canvas, tooltip, onmove);
    this.#transcript = new Transcript(this.#section.querySelector("ol"), tooltip);
    this.name(kind);
  }

  /** Say what kind of conversation it is. */
  name(kind, remark = NAMES[kind][1]) {
    this.#title.replaceChildren(NAMES[kind][0]);
    const small = document.createElement("small");
    small.textContent = remark;
    this.#title.append(small);
  }

  render(conversation, now, rate) {
    this.timeline.render(conversation, now, rate);
    this.#transcript.render(conversation);
    this.#section.classList.toggle("empty", conversation.entries.length === 0);
  }

  /** {name, text} of a connection. */
  tell({ name, text }) {
    this.#status.dataset.name = name;
    this.#status.textContent = text;
  }

  remove() {
    this.#section.remove();
  }
}
