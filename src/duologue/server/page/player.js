/** A recorded conversation as it was at any time of it. */

import { Conversation } from "./conversation.js";

export class Player {
  conversation;
  isPlaying = false;
  speed = 1;
  time = 0; // seconds since it began
  #record;
  #next = 0; // index of the first event that has not happened yet

  /** `record` is as `parse` of record.js gives it. */
  constructor(record) {
    this.#record = record;
    this.conversation = new Conversation(record.history);
    this.seek(0);
  }

  get record() {
    return this.#record;
  }

  get events() {
    return this.#record.events;
  }

  get head() {
    return this.#record.head;
  }

  /** Seconds that it took. */
  get length() {
    const { events } = this.#record;
    return events.length > 0 ? events.at(-1).at - events[0].at : 0;
  }

  /** The conversation's own time. */
  get now() {
    return (this.#record.events[0]?.at ?? 0) + this.time;
  }

  /** `seconds` went by. */
  step(seconds) {
    if (!this.isPlaying) return;
    this.seek(Math.min(this.length, this.time + seconds * this.speed));
    if (this.time >= this.length) this.isPlaying = false;
  }

  /** Go to `time`, which may be earlier: then it is told again from the beginning. */
  seek(time) {
    this.time = Math.max(0, Math.min(time, this.length));
    const { events, history } = this.#record;
    const now = this.now + 1e-9;
    if (this.#next > 0 && events[this.#next - 1].at > now) {
      this.conversation = new Conversation(history);
      this.#next = 0;
    }
    for (; this.#next < events.length && events[this.#next].at <= now; this.#next++) {
      this.conversation.take(events[this.#next]);
    }
  }

  toggle() {
    if (!this.isPlaying && this.time >= this.length) this.seek(0);
    this.isPlaying = !this.isPlaying;
  }
}
