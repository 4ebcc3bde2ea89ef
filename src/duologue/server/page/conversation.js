/**
 * What became of a conversation, worked out from its events: for the transcript, for the timeline, and in numbers.
 * Knows nothing of the page, so a live conversation and a recorded one are the same to it.
 *
 * A *line* is what the user said in one utterance; a *slice* of it is the words that came in at once, with the decision
 * that was made when they had. An *answer* is the assistant's; a *part* of it is what was heard in one piece of the
 * transcript. Times are seconds of the session, positions are UTF-16 units.
 */

import { Latencies } from "./latencies.js";
import { Ledger } from "./ledger.js";
import { isInWord, numWords, units } from "./text.js";

const MOST_ENTRIES = 400; // of the transcript
const MOST_SPANS = 2000; // of a lane of the timeline
const MOST_KNOWN = 64; // answers and utterances that events may still name
const BLOCK_S = 2; // of an answer in the timeline: the paper's slice
const QUICK_S = 0.35; // a slice is drawn to take at least this and …
const PER_CHARACTER_S = 0.12; // … at most this for each character

export class Conversation {
  begin = null; // time of the first event
  now = 0; // time of the newest event
  running = null; // the answer that is being heard, or will be
  entries = []; // of the transcript, oldest first: lines, parts and notes
  slices = []; // what the user said, for the timeline
  blocks = []; // what was heard of the assistant, for the timeline
  marks = []; // cuts and the like, also what a voice does with an answer, for the timeline
  decisions = []; // for the timeline
  latencies = new Latencies();
  #ledger;
  #lines = new Map(); // by utterance, the newest of each
  #answers = new Map();
  #listening = new Set(); // lines that have been neither answered nor dropped
  #part = null; // where the running answer is written
  #justDropped = []; // lines; a cut that follows at once was theirs
  #cutAt = -1;
  #withdrawn = null; // the newest answer that was
  #numEntries = 0;

  /** `asked` is the turn whose answer nothing has been heard of; `history` does not have it. */
  constructor(history = [], running = null, asked = null) {
    this.#reset(history, running, asked);
  }

  /** Turns: what was said to the assistant, and what was heard of it. */
  get history() {
    return this.#ledger.history;
  }

  /** Whether words are being heard that nothing has become of yet. */
  get isListening() {
    return [...this.#listening].some((line) => line.text !== "");
  }

  /** An event, as in docs/protocol.md. Those of kinds that are not known are passed over. */
  take(event) {
    this.#ledger.take(event);
    this.begin ??= event.at;
    this.now = Math.max(this.now, event.at);
    if (Object.hasOwn(TAKE, event.type)) TAKE[event.type].call(this, event);
  }

  /** A remark of the page's own. */
  note(text) {
    this.#enter({ kind: "note", at: this.now, text });
  }

  // ------------------------------------------------------------------ the user

  received({ at, utterance, text, final }) {
    const line = this.#line(utterance, text, at);
    const words = text.slice(line.base).trimStart();
    const isNew = line.answer === null || words !== line.text; // an answered one may merely end
    this.#grow(line, words, at);
    line.final = final;
    line.onset ??= at;
    line.lastAt = at;
    line.version++;
    if (words !== "" && line.id === undefined) {
      this.#split();
      this.#enter(line);
      if (this.running !== null) this.#write(this.running, this.running.heard);
    }
    if (isNew && (words !== "" || !final)) this.#listening.add(line);
    if (line.isDropped && words !== line.droppedText) line.outcome = "";
    this.latencies.received(line, at);
  }

  decided({ at, utterance, text, state, p, probabilities, speaking, heard_at: heardAt }) {
    const decision = { at, state, p, probabilities, speaking, text, ms: (at - heardAt) * 1000 };
    let isNew = true;
    for (const line of this.#listening) {
      for (const slice of line.slices) {
        if (slice.decision !== null) continue;
        slice.decision = decision;
        isNew = false;
      }
      line.decision = decision;
      line.version++;
    }
    const line = this.#lines.get(utterance);
    if (isNew && line?.slices.length) line.slices.at(-1).decision = decision; // the same words, judged again
    this.#push(this.decisions, decision);
    this.latencies.decided(decision);
  }

  held({ utterance, deferred }) {
    if (deferred) this.#become(utterance, "answered afterwards");
  }

  dropped({ at, utterance, text, reason }) {
    const said = [...this.#listening].map((line) => line.text).filter(Boolean).join(" ");
    const isAll = text === said;
    for (const line of [...this.#listening]) {
      if (!isAll && line.utterance !== utterance) continue;
      this.#listening.delete(line);
      line.isDropped = true;
      line.droppedText = line.text;
      line.outcome = OUTCOMES[reason] ?? reason;
      line.reason = reason;
      line.goneAt = at;
      line.version++;
      this.#justDropped = [...this.#justDropped.filter((other) => other.goneAt === at), line];
      if (reason === "retracted") this.#remove(line);
    }
  }

  promoted({ at, utterance, text, answer }) {
    const ignored = this.#lines.get(utterance); // until now, when it counts as the reply to a question
    const lines = this.#listening.size > 0 || ignored === undefined ? [...this.#listening] : [ignored];
    const made = this.#answer(answer);
    Object.assign(made, { lines, asked: text, state: "running", promotedAt: at });
    for (const line of lines) {
      line.outcome = this.#cutAt === at ? "cut in, answered" : "answered";
      line.reason = "";
      line.answer = made;
      line.version++;
    }
    this.#listening.clear();
    this.running = made;
    this.#write(made, 0);
    this.latencies.promoted(made, lines, this.decisions.at(-1));
  }

  // ------------------------------------------------------------------ the assistant

  released({ answer }) {
    this.#run(answer);
  }

  said({ at, answer: id, start, text }) {
    const answer = this.#run(id);
    const from = units(answer.text, start);
    answer.text = answer.text.slice(0, from) + text;
    answer.saidAt ??= at;
    answer.version++;
    this.latencies.said(answer, at);
  }

  heard({ at, answer: id, position }) {
    const answer = this.#run(id);
    const to = units(answer.text, position);
    const words = answer.text.slice(answer.heard, to);
    const last = this.blocks.at(-1);
    const isSame = last?.answer === answer && last.isOpen;
    if (isSame && at - last.from < BLOCK_S) {
      last.text += words;
      last.to = at;
    } else {
      const from = isSame ? last.to : Math.max(answer.resumedAt ?? answer.saidAt ?? at, last?.to ?? 0);
      if (isSame) last.isOpen = false;
      this.#push(this.blocks, { answer, from: Math.min(from, at), to: at, text: words, isOpen: true });
    }
    answer.heard = to;
    answer.version++;
  }

  suspended({ at, answer: id, unheard }) {
    const answer = this.#run(id);
    const count = numWords(unheard);
    Object.assign(answer, { state: "cut", cutAt: at, version: answer.version + 1 });
    this.#joinParts(answer);
    this.#stopWriting(answer.heard, unheard);
    this.#endBlock(at);
    this.#push(this.marks, { at, kind: "cut", label: `cut, ${count} unheard`, text: unheard });
    const gone = this.#justDropped.filter((line) => line.goneAt === at);
    const lines = this.#listening.size > 0 ? [...this.#listening] : gone;
    const isTheirs = this.decisions.at(-1)?.at === at || lines.some((line) => line.lastAt === at);
    if (isTheirs) this.latencies.suspended(lines, at); // else a button cut it, which has no onset
    this.#cutAt = at;
    this.running = null;
  }

  resumed({ at, answer: id, exact }) {
    // Words that ask for it need no answer of their own.
    if (this.running !== null && this.running.id !== id) this.#withdraw(this.running, "it goes on");
    else if (this.#withdrawn?.at === at) this.#withdraw(this.#withdrawn.answer, "it goes on");
    const answer = this.#answer(id);
    Object.assign(answer, { state: "running", resumedAt: at, version: answer.version + 1 });
    this.running = answer;
    this.#write(answer, answer.heard);
    this.#part.resumed = exact ? "goes on" : "goes on, said anew";
    this.#push(this.marks, { at, kind: "resumed", label: "goes on", text: "" });
  }

  taken_back({ answer: id }) {
    const answer = this.#answer(id);
    for (const line of answer.lines) {
      line.outcome = "";
      line.answer = null;
      line.version++;
      this.#listening.add(line);
    }
    this.#withdraw(answer);
  }

  withdrawn({ at, answer: id }) {
    const answer = this.#answer(id);
    this.#withdraw(answer, "not answered");
    this.#withdrawn = { at, answer };
  }

  finished({ answer: id, reason }) {
    const answer = this.#answer(id);
    answer.finished = reason;
    answer.version++;
  }

  committed({ at, answer: id, text }) {
    const answer = this.#run(id);
    Object.assign(answer, { text, heard: text.length, state: "committed", version: answer.version + 1 });
    this.#stopWriting(text.length, "");
    this.#endBlock(at);
    this.running = null;
    if (answer.finished === "length") this.note("the answer met its limit of length");
  }

  failed({ answer: id, reason, unanswered }) {
    this.note(unanswered ? `no answer: ${reason}` : `the answer broke off: ${reason}`);
    if (unanswered) this.#withdraw(this.#answer(id), "not answered");
  }

  noticed({ text }) {
    this.note(text);
  }

  // ------------------------------------------------------------------ the rest

  voice({ at, what }) {
    if (what in VOLUMES) this.#push(this.marks, { at, kind: what, label: VOLUMES[what], text: "" });
  }

  refused({ what, reason }) {
    this.note(`${what}: ${reason}`);
  }

  trimmed({ turns_dropped: dropped }) {
    this.note(`the oldest turns were left out to make room: ${dropped}`);
  }

  edited({ at, history }) {
    this.note("the history was replaced");
    this.#endBlock(at);
    this.#begin(history);
  }

  #reset(history, running, asked) {
    const isPart = running !== null && running.heard > 0 && history.at(-1)?.role === "assistant";
    const isKept = isPart && history.at(-2)?.role === "user" ? 1 : 0;
    const before = isPart ? history.slice(0, history.length - 1 - isKept) : history;
    const question = isKept ? history.at(-2).text : (asked?.text ?? null);
    this.#begin(before);
    if (question !== null) this.#enter(turnLine(question));
    if (running === null && asked === null) return;
    this.#ledger = new Ledger(isKept ? [...before, history.at(-2)] : before);
    if (asked !== null) this.#ledger.take({ type: "promoted", answer: asked.answer, text: asked.text });
    const text = running?.text ?? "";
    const heard = units(text, running?.heard ?? 0);
    if (running !== null) {
      this.#ledger.take({ type: "said", answer: running.answer, start: 0, text });
      this.#ledger.take({ type: "heard", answer: running.answer, position: running.heard });
    }
    this.running = this.#answer((running ?? asked).answer);
    Object.assign(this.running, { text, heard, state: "running" });
    this.#write(this.running, 0);
  }

  /** The conversation is what these turns say. */
  #begin(history) {
    this.#ledger = new Ledger(history);
    this.#lines.clear();
    this.#answers.clear();
    this.#listening.clear();
    this.running = this.#part = null;
    for (const turn of history) {
      if (turn.role === "user") this.#enter(turnLine(turn.text));
      else this.#enter(turnPart(turn.text));
    }
  }

  #line(utterance, text, at) {
    const known = this.#lines.get(utterance);
    const isAnswered = known?.answer != null && known.answer.heard > 0;
    const isAnother = known?.isDropped && !text.startsWith(known.whole); // its end was not told
    if (known !== undefined && !known.final && !isAnswered && !isAnother) return known;
    const goesOn = known !== undefined && !known.final && text.startsWith(known.whole);
    const line = {
      kind: "user", utterance, at, onset: null, lastAt: at, text: "", whole: "", base: goesOn ? known.whole.length : 0,
      final: false, slices: [], decision: null, outcome: "", reason: "", answer: null,
      isDropped: false, droppedText: "", version: 0,
    }; // prettier-ignore
    remember(this.#lines, utterance, line);
    return line;
  }

  /** The words of `line` are now `words`: what stayed keeps its slices, what is new is a slice. */
  #grow(line, words, at) {
    const kept = wordStart(words, commonLength(line.text, words)); // what was thought of half a word is not of it
    line.text = words;
    line.whole = line.whole.slice(0, line.base) + words;
    for (let end = 0, i = 0; i < line.slices.length; i++) {
      const slice = line.slices[i];
      if (end + slice.text.length > kept) {
        for (const gone of line.slices.splice(i + (end < kept ? 1 : 0))) gone.isGone = true;
        if (end < kept) slice.text = slice.text.slice(0, kept - end);
        break;
      }
      end += slice.text.length;
    }
    const text = words.slice(kept);
    if (text.trim() === "") return;
    const from = Math.max(line.onset === null ? at : line.lastAt, at - QUICK_S - PER_CHARACTER_S * text.length);
    const slice = { line, text, from, to: at, decision: null, isGone: false };
    line.slices.push(slice);
    this.#push(this.slices, slice);
  }

  #become(utterance, outcome) {
    const line = this.#lines.get(utterance);
    if (line === undefined) return;
    line.outcome = outcome;
    line.version++;
  }

  #answer(id) {
    let answer = this.#answers.get(id);
    if (answer === undefined) {
      answer = {
        id, asked: null, text: "", heard: 0, state: "running", finished: null, lines: [], version: 0,
        promotedAt: null, saidAt: null, resumedAt: null, cutAt: null,
      }; // prettier-ignore
      remember(this.#answers, id, answer);
    }
    return answer;
  }

  /** The running answer; one that nobody asked for has no other beginning. */
  #run(id) {
    const answer = this.#answer(id);
    if (this.running !== answer) {
      this.running = answer;
      answer.state = "running";
      this.#write(answer, answer.heard);
    }
    return answer;
  }

  /** `answer` is written below what there is, from `start` on. */
  #write(answer, start) {
    this.#part = { kind: "assistant", at: this.now, answer, start, end: null, cut: "", resumed: "", version: 0 };
    this.#enter(this.#part);
  }

  /** Something comes between: what is heard of the running answer from now on is written below it. */
  #split() {
    const part = this.#part;
    if (part === null || this.running === null) return;
    if (this.running.heard <= part.start) this.#remove(part);
    else Object.assign(part, { end: this.running.heard, version: part.version + 1 });
  }

  /** Where nothing was heard since something came between, there is no part of its own to be cut. */
  #joinParts(answer) {
    const part = this.#part;
    const isPart = (entry) => entry.kind === "assistant" && entry.answer === answer && entry !== part;
    const before = this.entries.findLast(isPart);
    if (part === null || before === undefined || part.resumed !== "" || answer.heard > part.start) return;
    this.#remove(part);
    this.#part = before;
  }

  #stopWriting(end, cut) {
    if (this.#part !== null) Object.assign(this.#part, { end, cut, version: this.#part.version + 1 });
    this.#part = null;
  }

  #withdraw(answer, outcome) {
    answer.state = "gone";
    for (const line of outcome === undefined ? [] : answer.lines) {
      if (outcome !== "") line.outcome = outcome;
      line.version++;
    }
    if (this.#part?.answer === answer) {
      this.#remove(this.#part);
      this.#part = null;
    }
    if (this.running === answer) this.running = null;
  }

  #endBlock(at) {
    const last = this.blocks.at(-1);
    if (last?.isOpen) Object.assign(last, { isOpen: false, to: Math.max(last.to, Math.min(at, last.to + 0.5)) });
  }

  #enter(entry) {
    entry.id = this.#numEntries++;
    this.entries.push(entry);
    if (this.entries.length > MOST_ENTRIES) this.entries.splice(0, this.entries.length - MOST_ENTRIES);
  }

  #remove(entry) {
    const index = this.entries.indexOf(entry);
    if (index >= 0) this.entries.splice(index, 1);
    entry.id = undefined;
  }

  #push(list, item) {
    list.push(item);
    if (list.length > MOST_SPANS) list.splice(0, MOST_SPANS / 4);
  }
}

const TAKE = Object.fromEntries(
  ["received", "decided", "held", "dropped", "promoted", "released", "said", "heard", "suspended", "resumed",
    "taken_back", "withdrawn", "finished", "committed", "failed", "noticed", "refused", "trimmed", "edited",
    "voice"].map((type) => [type, Conversation.prototype[type]]),
); // prettier-ignore

const VOLUMES = { ducked: "quieter", yielded: "pauses", came_back: "as loud as before" }; // of an answer by voice

const OUTCOMES = {
  ignore: "ignored",
  stop: "stopped",
  patience: "never finished, dropped",
  retracted: "taken back",
  "no words": "no words",
  echo: "its own words, dropped",
  deaf: "not heard: it was talking",
  "too long": "too long",
  "no room": "no room for it",
  edit: "given up",
};

function turnLine(text) {
  const slices = [{ text, decision: null }];
  return { kind: "user", at: null, text, slices, final: true, decision: null, outcome: "", reason: "", version: 0 };
}

function turnPart(text) {
  const answer = { text, heard: text.length, state: "committed", version: 0 };
  return { kind: "assistant", at: null, answer, start: 0, end: text.length, cut: "", resumed: "", version: 0 };
}

function commonLength(one, other) {
  const most = Math.min(one.length, other.length);
  let length = 0;
  while (length < most && one[length] === other[length]) length++;
  return length;
}

/** Where the word that `position` is in begins; `position` itself where it is between two. */
function wordStart(text, position) {
  if (position === text.length) return position;
  while (position > 0 && isInWord(text[position - 1], text[position])) position--;
  return position;
}

function remember(map, key, value) {
  map.delete(key);
  map.set(key, value);
  if (map.size > MOST_KNOWN) map.delete(map.keys().next().value);
}
