/**
 * What a visitor can choose, kept in the address, so that a link says how a page is to be. The token of the server is
 * read from the address, too (`#token=…`), and taken out of it at once: a link that is passed on must not hold it.
 */

const RANGES = {
  rate: { initial: 4, least: 1, most: 20, step: 0.5 }, // words a second at which answers are read
  pause: { initial: 350, least: 100, most: 2000, step: 50 }, // ms without a key, after which what is typed is sent
  eagerness: { initial: 0, least: -1, most: 1, step: 0.1 },
  temperature: { initial: 0, least: 0, most: 2, step: 0.1 },
  seed: { initial: 0, least: 0, most: 999999, step: 1 },
};
const CHOICES = {
  interruptible: ["true", "stop-only", "false"],
  compare: ["off", "turns", "vad"],
  theme: ["auto", "light", "dark"],
};
const WRITE_MS = 250; // browsers do not let an address change as often as a slider does
const STORED_TOKEN = "duologue-token";

/** Settings of the page; `change` tells those who listen. */
export class Settings extends EventTarget {
  #values;
  #writing = 0;

  constructor(search = location.search) {
    super();
    const found = new URLSearchParams(search);
    this.#values = { system: found.get("system") ?? "" };
    for (const [key, range] of Object.entries(RANGES)) this.#values[key] = number(found.get(key), range);
    for (const [key, options] of Object.entries(CHOICES)) {
      this.#values[key] = options.includes(found.get(key)) ? found.get(key) : options[0];
    }
  }

  get(key) {
    return this.#values[key];
  }

  /** The range of a number: {initial, least, most, step}. */
  range(key) {
    return RANGES[key];
  }

  set(key, value) {
    const next = key in RANGES ? number(value, RANGES[key]) : String(value);
    if (next === this.#values[key]) return;
    this.#values[key] = next;
    clearTimeout(this.#writing);
    this.#writing = setTimeout(() => this.#write(), WRITE_MS);
    this.dispatchEvent(new CustomEvent("change", { detail: { key, value: next } }));
  }

  /** For `start` of the protocol. */
  forSession(kind) {
    const { system, eagerness, interruptible, temperature, seed } = this.#values;
    return { kind, hearing: "reported", eagerness, interruptible, temperature, seed, ...(system ? { system } : {}) };
  }

  #write() {
    const query = new URLSearchParams();
    for (const [key, value] of Object.entries(this.#values)) {
      const initial = key === "system" ? "" : key in RANGES ? RANGES[key].initial : CHOICES[key][0];
      if (value !== initial) query.set(key, String(value));
    }
    const text = query.toString();
    history.replaceState(null, "", location.pathname + (text ? `?${text}` : ""));
  }
}

/** The token for the server, or null. It stays with this tab, so that the page can be loaded again. */
export function takeToken() {
  const found = new URLSearchParams(location.hash.slice(1)).get("token");
  if (found !== null) {
    keepToken(found);
    history.replaceState(null, "", location.pathname + location.search);
  }
  return found ?? sessionStorage.getItem(STORED_TOKEN);
}

export function keepToken(token) {
  sessionStorage.setItem(STORED_TOKEN, token);
}

function number(text, { initial, least, most }) {
  const value = text === null || text === "" ? NaN : Number(text);
  return Number.isFinite(value) ? Math.min(most, Math.max(least, value)) : initial;
}
