/**
 * Somebody who reads an answer at a constant pace, however fast it is generated. What they have read is what counts as
 * heard. (Where answers are played as sound, the player says how far it got instead.)
 */

import { characters, isBetweenLetters, numLetters } from "./text.js";

const CHARACTERS_PER_WORD = 6;
const LONGEST_STEP_S = 0.25; // a page that was not shown was not read meanwhile
const LEAST_GAP_S = 0.05; // between two reports

export class Reader {
  #report;
  #answer = null;
  #position = 0; // in the text, and further: a fraction
  #told = 0;
  #sinceReport = 0;

  /** `report(position, answer)` is told how far the answer of that id was read, in characters. */
  constructor(report) {
    this.#report = report;
  }

  /** `seconds` went by; `running` is the running answer of a `Conversation`, or null. */
  step(running, seconds, wordsPerSecond) {
    const elapsed = Math.min(seconds, LONGEST_STEP_S);
    this.#sinceReport += elapsed;
    if (running === null || running.text === "") {
      this.#answer = null;
      return;
    }
    if (running !== this.#answer) {
      this.#answer = running;
      this.#position = this.#told = running.heard;
    } else {
      const step = elapsed * wordsPerSecond * CHARACTERS_PER_WORD;
      const ahead = running.text.slice(this.#position, this.#position + step + 1);
      this.#position += ahead === "" ? step : (step * ahead.length) / numLetters(ahead);
    }
    this.#position = Math.min(this.#position, running.text.length);
    const end = wordEnd(running, Math.floor(this.#position));
    if (end <= this.#told || this.#sinceReport < LEAST_GAP_S) return;
    this.#told = end;
    this.#sinceReport = 0;
    this.#report(characters(running.text, end), running.id);
  }
}

/** Where the last whole word before `position` ends; of an answer that is finished, its end is one. */
function wordEnd({ text, finished }, position) {
  if (position >= text.length && finished !== null) return text.length;
  let end = position;
  while (end > 0 && isBetweenLetters(text[end - 1], text[end] ?? "a")) end--;
  return end;
}
