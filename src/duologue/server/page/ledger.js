/**
 * What was said to the assistant and heard of it, told by events alone: `duologue.core.ledger` once more, for a page.
 */

import { units } from "./text.js";

const MOST_CUT = 64; // answers that were cut and may go on; a session keeps fewer

/** Takes the events of a session in order; `history` is what the conversation began with, and then what it became. */
export class Ledger {
  #turns;
  #running = null; // {id, asked, count, text, heard}: an answer, as far as it was told
  #cut = new Map();

  constructor(history = []) {
    this.#turns = [...history];
  }

  /** Turns, oldest first: {role: "user" | "assistant", text}. */
  get history() {
    const running = this.#running;
    return running !== null && running.heard > 0 ? [...this.#turns, ...turnsOf(running)] : [...this.#turns];
  }

  /** Whether no answer is on the way. */
  get isQuiet() {
    return this.#running === null;
  }

  /** `event` happened. */
  take(event) {
    switch (event.type) {
      case "promoted":
        this.#running = told(event.answer, event.text, this.#turns.length);
        break;
      case "released":
        this.#release(event.answer);
        break;
      case "said": {
        const answer = this.#release(event.answer);
        answer.text = answer.text.slice(0, units(answer.text, event.start)) + event.text;
        break;
      }
      case "heard": {
        const answer = this.#release(event.answer);
        answer.heard = units(answer.text, event.position);
        break;
      }
      case "committed": {
        const answer = this.#release(event.answer);
        answer.text = event.text;
        answer.heard = event.text.length;
        this.#close();
        break;
      }
      case "suspended":
        this.#cut.set(event.answer, this.#release(event.answer));
        this.#close();
        if (this.#cut.size > MOST_CUT) this.#cut.delete(this.#cut.keys().next().value);
        break;
      case "resumed":
        this.#resume(event);
        break;
      case "taken_back":
      case "withdrawn":
        this.#running = null;
        break;
      case "trimmed":
        this.#turns.splice(0, event.turns_dropped);
        this.#cut.clear();
        break;
      case "edited":
        this.#turns = [...event.history];
        this.#running = null;
        this.#cut.clear();
        break;
    }
  }

  /** The running answer. Without words promoted to it, it answers the user's turn that ends the history. */
  #release(id) {
    if (this.#running === null || this.#running.id !== id) {
      const last = this.#turns.at(-1);
      const asked = last?.role === "user" ? this.#turns.pop().text : null;
      this.#running = told(id, asked, this.#turns.length);
    }
    return this.#running;
  }

  #close() {
    this.#turns.push(...turnsOf(this.#running));
    this.#running = null;
  }

  #resume(event) {
    const cut = this.#cut.get(event.suspended);
    this.#cut.delete(event.suspended);
    if (event.exact && cut !== undefined) {
      this.#turns.length = Math.min(this.#turns.length, cut.count);
      this.#running = cut;
    } else if (this.#running === null || this.#running.id !== event.answer) {
      const asked = this.#running === null ? null : this.#running.asked; // words such as “go on”
      this.#running = told(event.answer, asked, this.#turns.length);
    }
  }
}

function told(id, asked, count) {
  return { id, asked, count, text: "", heard: 0 };
}

function turnsOf(answer) {
  const said = { role: "assistant", text: answer.text.slice(0, answer.heard) };
  return answer.asked === null ? [said] : [{ role: "user", text: answer.asked }, said];
}
