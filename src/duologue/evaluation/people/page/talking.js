/** Two systems that one talks to, one after the other. */

import { Composer } from "../page/composer.js";
import { Settings } from "../page/settings.js";
import { Talk } from "../page/talk.js";
import { show } from "./bubbles.js";

const NAMES = ["A", "B"];

export class Talking {
  #talks;
  #boxes;
  #elements;
  #composer;
  #voice;
  #active = 0;
  #onboth;
  #drawnAt = 0;
  #isOver = false;

  /** `sides`: {url, kind} of A and B. `elements`: input, switch, status. `onboth`: both have said something. */
  constructor(sides, boxes, elements, voice, token, onboth) {
    const settings = new Settings("");
    this.#boxes = boxes;
    this.#elements = elements;
    this.#voice = voice;
    this.#onboth = onboth;
    this.#talks = sides.map(({ url, kind }) => new Talk(kind, settings, token, null, url));
    for (const talk of this.#talks) {
      talk.addEventListener("status", () => this.#tell());
      talk.addEventListener("began", () => talk === this.#talks[this.#active] && voice.attach(talk)); // now it is known
    }
    const hear = (text, utterance, final) => this.#talks[this.#active].hear(text, utterance, final);
    this.#composer = new Composer(elements.input, settings, hear, () => {});
    elements.switch.onclick = () => this.#choose(1 - this.#active);
    this.#choose(0);
    requestAnimationFrame((ms) => this.#frame(ms));
  }

  end() {
    this.#isOver = true;
    this.#elements.switch.onclick = null;
    this.#voice.end();
    for (const talk of this.#talks) talk.end();
  }

  #choose(side) {
    this.#composer.clear();
    const before = this.#talks[this.#active];
    if (side !== this.#active && before.conversation.running !== null) before.command("stop");
    this.#active = side;
    this.#voice.attach(this.#talks[side]);
    this.#boxes.forEach((box, index) => box.parentElement.classList.toggle("active", index === side));
    this.#elements.switch.textContent = `Talk to ${NAMES[1 - side]}`;
    this.#tell();
    this.#composer.focus();
  }

  #tell() {
    const { name, text } = this.#talks[this.#active].status;
    this.#elements.status.textContent = `You are talking to ${NAMES[this.#active]}` + (name === "open" ? "." : `: ${text}.`);
  }

  #frame(ms) {
    if (this.#isOver) return;
    const elapsed = this.#drawnAt === 0 ? 0 : Math.max(0, ms - this.#drawnAt) / 1000;
    this.#drawnAt = ms;
    for (const [index, talk] of this.#talks.entries()) {
      talk.step(elapsed);
      show(this.#boxes[index], talk.conversation);
    }
    if (this.#talks.every(({ conversation }) => conversation.blocks.length > 0)) this.#onboth();
    requestAnimationFrame((next) => this.#frame(next));
  }
}
