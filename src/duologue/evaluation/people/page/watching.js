/** Two recorded conversations, played back at the same time. */

import { Player } from "../page/player.js";
import { clock } from "../page/text.js";
import { show } from "./bubbles.js";

export class Watching {
  #players;
  #boxes;
  #elements;
  #onend;
  #length;
  #time = 0;
  #isPlaying = false;
  #drawnAt = 0;

  /** `sides`: {history, events} of A and B. `elements`: play, seek, time, speed. `onend`: they were seen to the end. */
  constructor(sides, boxes, elements, onend) {
    this.#players = sides.map((side) => new Player({ head: {}, ...side }));
    this.#boxes = boxes;
    this.#elements = elements;
    this.#onend = onend;
    const { play, seek } = elements;
    this.#length = Math.max(...sides.map(({ events }) => events.at(-1).at));
    seek.max = String(Math.ceil(this.#length * 10) / 10); // in its steps
    play.onclick = () => this.#toggle();
    seek.oninput = () => {
      this.#isPlaying = false;
      this.#go(Number(seek.value));
    };
    this.#go(0);
  }

  end() {
    this.#isPlaying = false;
    this.#elements.play.onclick = this.#elements.seek.oninput = null;
  }

  #toggle() {
    this.#isPlaying = !this.#isPlaying;
    if (this.#isPlaying && this.#time >= this.#length) this.#time = 0;
    this.#drawnAt = performance.now();
    this.#go(this.#time);
    if (this.#isPlaying) requestAnimationFrame((ms) => this.#frame(ms));
  }

  #frame(ms) {
    if (!this.#isPlaying) return;
    const elapsed = Math.max(0, ms - this.#drawnAt) / 1000;
    this.#drawnAt = ms;
    const time = this.#time + elapsed * Number(this.#elements.speed.value);
    this.#isPlaying = time < this.#length;
    this.#go(time);
    if (this.#isPlaying) requestAnimationFrame((next) => this.#frame(next));
  }

  /** Show both as they were at `time`, in seconds since the scripts began. */
  #go(time) {
    this.#time = Math.min(time, this.#length);
    for (const [index, player] of this.#players.entries()) {
      player.seek(this.#time - (player.events[0].at ?? 0));
      show(this.#boxes[index], player.conversation);
    }
    const { play, seek, time: output } = this.#elements;
    seek.value = String(this.#time);
    output.textContent = `${clock(this.#time)} of ${clock(this.#length)}`;
    play.textContent = this.#isPlaying ? "❚❚" : "▶";
    play.setAttribute("aria-label", this.#isPlaying ? "pause" : "play");
    if (this.#time >= this.#length) this.#onend();
  }
}
