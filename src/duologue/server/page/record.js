/**
 * A conversation as a file: one line of JSON says how it began, and then a line each event. It is the server's own form
 * of records, so `duologue replay` takes what is downloaded here, and this page what `duologue serve --record` wrote.
 */

import { Conversation } from "./conversation.js";
import { Ledger } from "./ledger.js";

export const VERSION = 1;
const MOST_EVENTS = 20000; // that are kept of a live conversation
const MOST_BYTES = 64 << 20; // of a file

/** The newest events of a live conversation, and what the history was before them. */
export class Keeper {
  #dropped; // a ledger of what is not kept any more
  #events = [];
  #head;
  #numDropped = 0;

  /** `head` has model and settings. */
  constructor(head, history) {
    this.#head = { record: VERSION, session: name(new Date()), began: new Date().toISOString(), ...head };
    this.#dropped = new Ledger(history);
  }

  get events() {
    return this.#events;
  }

  /** How many events came before `events`. */
  get numDropped() {
    return this.#numDropped;
  }

  add(event) {
    this.#events.push(event);
    if (this.#events.length > MOST_EVENTS) this.#shorten();
  }

  /** {head, history, events} */
  record() {
    return { head: this.#head, history: this.#dropped.history, events: [...this.#events] };
  }

  /** Give up the oldest quarter, to where no answer is on the way, so that what is left can be read by itself. */
  #shorten() {
    let count = 0;
    for (const event of this.#events) {
      this.#dropped.take(event);
      count++;
      if (count >= MOST_EVENTS / 4 && this.#dropped.isQuiet && event.type !== "received") break;
    }
    this.#events.splice(0, count);
    this.#numDropped += count;
  }
}

/** Lines of a file for `record`. */
export function format({ head, history, events }) {
  const rows = [{ ...head, history }, ...events.map(plain)];
  return rows.map((row) => JSON.stringify(row) + "\n").join("");
}

/**
 * What a file holds: {head, history, events}. A last line that is not whole is left out, as a killed server leaves it.
 * Throws an `Error` that names the line.
 */
export function parse(text) {
  if (text.length > MOST_BYTES) throw new Error("a record of more than 64 MB is too large for a page");
  const lines = text.split("\n");
  if (lines.at(-1).trim() !== "") lines.pop();
  const rows = [];
  for (const [index, line] of lines.entries()) {
    if (line.trim() === "") continue;
    const row = read(line, index + 1);
    if (rows.length > 0 && (typeof row.at !== "number" || typeof row.type !== "string")) {
      throw new Error(`line ${index + 1} is no event: it has no "at" and "type"`);
    }
    rows.push(row);
  }
  const { history, ...head } = rows.shift() ?? {};
  if (head.record !== VERSION || !Array.isArray(history)) {
    throw new Error('this is no record of a conversation: its first line should be {"record": 1, …, "history": […]}');
  }
  const conversation = new Conversation(history); // whatever is wrong with an event is found now
  for (const [index, event] of rows.entries()) {
    try {
      conversation.take(event);
    } catch (error) {
      throw new Error(`event ${index + 1}, ${event.type}, cannot be read: ${error.message}`);
    }
  }
  return { head, history, events: rows };
}

function read(line, number) {
  let row;
  try {
    row = JSON.parse(line);
  } catch {
    throw new Error(`line ${number} is not JSON`);
  }
  if (row === null || typeof row !== "object" || Array.isArray(row)) throw new Error(`line ${number} is no object`);
  return row;
}

/** An event without what only belongs to the connection that it came by. */
function plain({ number, taken, ...event }) {
  return event;
}

function name(date) {
  return `page-${date.toISOString().slice(0, 19).replace(/[-:]/g, "").replace("T", "-")}`;
}
