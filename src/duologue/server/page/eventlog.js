/** Every event as it came, to be searched, and to be kept as a file. */

import { clock } from "./text.js";

const MOST_ROWS = 300; // that are shown: the newest that match

export class EventLog {
  #body;
  #filter;
  #count;
  #shown = null; // the events that are shown, how many of them, and by what filter

  constructor({ body, filter, count }) {
    this.#body = body;
    this.#filter = filter;
    this.#count = count;
  }

  /** Show what matches of `events`; `begin` is the time of the first of the conversation. */
  render(events, begin, numDropped = 0) {
    const query = this.#filter.value.trim().toLowerCase();
    const key = `${query}/${numDropped}/${begin}`;
    const isSame = this.#shown?.events === events && this.#shown.key === key;
    const from = isSame ? this.#shown.length : 0;
    if (isSame && from === events.length) return;
    if (!isSame) this.#body.replaceChildren();
    const isAtEnd = !isSame || this.#body.scrollHeight - this.#body.scrollTop - this.#body.clientHeight < 40;
    const found = [];
    for (let i = events.length - 1; i >= from && found.length < MOST_ROWS; i--) {
      if (matches(events[i], query)) found.push(row(events[i], begin));
    }
    this.#body.append(...found.reverse());
    while (this.#body.childElementCount > MOST_ROWS) this.#body.firstElementChild.remove();
    this.#shown = { events, length: events.length, key };
    this.#count.textContent = `${events.length + numDropped} events`;
    if (isAtEnd) this.#body.scrollTop = this.#body.scrollHeight;
  }
}

/** Words of the filter must all be there; one that begins with a minus must not. */
function matches(event, query) {
  if (query === "") return true;
  const text = `${event.type} ${details(event)}`.toLowerCase();
  return query.split(/\s+/).every((word) => {
    return /^-./.test(word) ? !text.includes(word.slice(1)) : text.includes(word);
  });
}

function row(event, begin) {
  const made = document.createElement("div");
  made.className = "event";
  made.dataset.type = event.type;
  if (event.state) made.dataset.state = event.state;
  const cells = { at: clock(event.at - (begin ?? event.at)), type: event.type, rest: details(event) };
  for (const [name, text] of Object.entries(cells)) {
    const cell = document.createElement("span");
    cell.className = name;
    cell.textContent = text;
    made.append(cell);
  }
  return made;
}

function details({ at, type, number, taken, heard_at: heardAt, ...rest }) {
  if (heardAt !== undefined) rest.ms = Math.round((at - heardAt) * 1000);
  return Object.entries(rest).map(([key, value]) => `${key}=${JSON.stringify(value)}`).join(" ");
}

/** Offer `text` as a file. */
export function download(name, text) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "application/x-ndjson" }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
