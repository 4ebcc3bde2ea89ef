/** What was thought of some words: the probabilities of all states, beside what the pointer or the keyboard is at. */

const STATES = ["process", "incomplete", "ignore", "stop"];
const GAP = 10; // pixels

/** One for the whole page; for sight only, since what it says is also said in the labels of what it belongs to. */
export class Tooltip {
  #box;

  constructor(box) {
    this.#box = box;
  }

  /** Show `decision` (of a `Conversation`; null: none yet) for `text`, at a place on the screen. */
  show({ text, decision, note = "" }, x, y) {
    const parts = [line("said", text.trim())];
    if (decision !== null) {
      const found = Object.entries(decision.probabilities ?? {});
      const order = [...STATES.filter((state) => state in decision.probabilities), ...rest(found)];
      for (const state of order) parts.push(bar(state, decision.probabilities[state]));
      parts.push(line("when", `${decision.speaking ? "over an answer" : "in silence"}, ${Math.round(decision.ms)} ms`));
    }
    if (note !== "") parts.push(line("when", note));
    this.#box.replaceChildren(...parts);
    this.#box.hidden = false;
    const { width, height } = this.#box.getBoundingClientRect();
    const left = Math.max(GAP, Math.min(x - width / 2, innerWidth - width - GAP));
    const above = y - height - GAP;
    this.#box.style.left = `${left}px`;
    this.#box.style.top = `${above > GAP ? above : y + 2 * GAP}px`;
  }

  hide() {
    this.#box.hidden = true;
  }
}

/** "process 97 %, ignore 2 %": for who cannot see colours or bars. */
export function described(decision) {
  const found = Object.entries(decision.probabilities).sort((a, b) => b[1] - a[1]);
  return found.map(([state, p]) => `${state} ${percent(p)}`).join(", ");
}

function rest(found) {
  return found.map(([state]) => state).filter((state) => !STATES.includes(state));
}

function percent(p) {
  return `${(100 * p).toFixed(p > 0.0995 && p < 0.9995 ? 0 : 1)} %`;
}

function line(name, text) {
  const made = document.createElement("div");
  made.className = name;
  made.textContent = text.length > 160 ? `${text.slice(0, 160)}…` : text;
  return made;
}

function bar(state, p) {
  const row = document.createElement("div");
  row.className = "chance";
  row.dataset.state = state;
  const name = document.createElement("span");
  name.textContent = state;
  const track = document.createElement("span");
  track.className = "track";
  const fill = document.createElement("span");
  fill.style.width = `${100 * p}%`;
  track.append(fill);
  const value = document.createElement("span");
  value.className = "value";
  value.textContent = percent(p);
  row.append(name, track, value);
  return row;
}
