/** The conversation as text: on one side what you said, coloured by decision, on the other what was heard of answers. */

import { described } from "./tooltip.js";
import { clock, counted, numWords } from "./text.js";

const NEAR_END = 60; // pixels: who is so near the end wants to stay there

export class Transcript {
  #box;
  #shown = new Map(); // id of an entry to its element, and what it was made of
  #conversation = null;
  #follows = true;
  #scrolledTo = 0;

  /** `box` is the element to fill; `tooltip` shows probabilities. */
  constructor(box, tooltip) {
    this.#box = box;
    box.addEventListener("scroll", () => this.#scrolled());
    const show = ({ target }) => {
      const words = target.closest?.(".slice, .verdict");
      if (words?.said === undefined) return tooltip.hide();
      const { left, width, top } = words.getBoundingClientRect();
      tooltip.show(words.said, left + width / 2, top);
    };
    box.addEventListener("pointerover", show);
    box.addEventListener("focusin", show);
    for (const end of ["pointerleave", "focusout"]) box.addEventListener(end, () => tooltip.hide());
  }

  /** Show the entries of `conversation` as they are now; only what changed is made again. */
  render(conversation) {
    if (conversation !== this.#conversation) {
      this.#conversation = conversation;
      this.#shown.clear();
      this.#box.replaceChildren();
      this.#follows = true;
    }
    const ids = new Set();
    let previous = null;
    let isChanged = false;
    for (const entry of conversation.entries) {
      ids.add(entry.id);
      isChanged = this.#renderEntry(entry, previous, conversation.begin) || isChanged;
      previous = this.#shown.get(entry.id).element;
    }
    for (const [id, { element }] of this.#shown) {
      if (ids.has(id)) continue;
      element.remove();
      this.#shown.delete(id);
      isChanged = true;
    }
    if (isChanged && this.#follows) this.#follow();
  }

  /** Keep what is being heard on the screen; what was not heard yet may be longer than that. */
  #follow() {
    const box = this.#box;
    let top = box.scrollHeight - box.clientHeight;
    const ahead = box.querySelector("li:last-child .ahead");
    if (ahead !== null) {
      const border = ahead.getClientRects()[0]?.top - box.getBoundingClientRect().top + box.scrollTop;
      top = Math.min(top, Math.max(0, border - 0.6 * box.clientHeight));
    }
    this.#scrolledTo = Math.round(top);
    box.scrollTop = top;
  }

  #scrolled() {
    const { scrollTop, scrollHeight, clientHeight } = this.#box;
    if (Math.abs(scrollTop - this.#scrolledTo) < 2) return; // not the visitor
    this.#follows = scrollHeight - scrollTop - clientHeight < NEAR_END;
  }

  #renderEntry(entry, previous, begin) {
    const key = keyOf(entry);
    const known = this.#shown.get(entry.id);
    if (known !== undefined && known.key === key) return false;
    const element = known?.element ?? document.createElement("li");
    MAKE[entry.kind](element, entry, begin);
    if (known === undefined) {
      this.#shown.set(entry.id, { element, key });
      if (previous === null) this.#box.prepend(element);
      else previous.after(element);
    } else {
      known.key = key;
    }
    return true;
  }
}

/** What an entry's element is made of. */
function keyOf(entry) {
  if (entry.kind === "assistant") return `${entry.version}/${entry.end === null ? entry.answer.version : ""}`;
  return String(entry.version ?? "");
}

const MAKE = {
  user(element, line, begin) {
    element.className = "user";
    element.dataset.reason = line.reason;
    const words = make("p", "words");
    words.append(...line.slices.map(slice));
    if (!line.final && line.outcome === "") words.append(make("span", "waits", " …"));
    element.replaceChildren(...head("you", line.at, begin), words);
    if (line.outcome !== "" || line.decision !== null) element.append(verdict(line));
  },

  assistant(element, part, begin) {
    const { answer, start, end, cut, resumed } = part;
    element.className = "assistant";
    element.hidden = answer.text.length <= start && cut === "";
    const heard = answer.text.slice(start, Math.min(end ?? answer.heard, answer.heard));
    const ahead = end === null ? answer.text.slice(Math.max(start, answer.heard)) : "";
    const words = make("p", "words");
    if (resumed) words.append(make("span", "note", `${resumed} `));
    const gap = /^ */.exec(heard)[0]; // before the first word of a part that goes on: there, but not to be seen
    if (gap) words.append(make("span", "heard gap", gap));
    words.append(make("span", "heard", heard.slice(gap.length)));
    if (ahead) words.append(make("span", "ahead", ahead));
    if (cut) words.append(make("span", "cut", cut));
    element.replaceChildren(...head("assistant", part.at, begin), words);
    if (cut) {
      const count = numWords(cut);
      element.append(make("p", "verdict cut-note", `✂ cut here; ${counted(count, "word")} generated and not heard`));
    }
  },

  note(element, { at, text }, begin) {
    element.className = "note";
    element.replaceChildren(make("p", "words", at && begin !== null ? `${clock(at - begin)}  ${text}` : text));
  },
};

function head(who, at, begin) {
  const made = make("p", "who", who);
  if (at !== null && begin !== null) made.append(make("span", "at", clock(at - begin)));
  return [made];
}

function slice({ text, decision }) {
  const made = make("span", "slice", text);
  if (decision === null) return made;
  made.dataset.state = decision.state;
  made.said = { text, decision };
  return made;
}

function verdict({ text, decision, outcome }) {
  const made = make("p", "verdict");
  if (decision !== null) {
    const button = make("button", "verdict chip", `${decision.state} ${decision.p.toFixed(2)}`);
    button.type = "button";
    button.dataset.state = decision.state;
    button.said = { text, decision };
    const took = `it took ${Math.round(decision.ms)} milliseconds`;
    button.setAttribute("aria-label", `decision: ${described(decision)}; ${took}`);
    made.append(button);
  }
  if (outcome !== "") made.append(make("span", "outcome", outcome));
  return made;
}

function make(tag, className, text = "") {
  const element = document.createElement(tag);
  element.className = className;
  element.textContent = text;
  return element;
}
