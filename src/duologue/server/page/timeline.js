/**
 * Two lanes over time: what you said, in slices coloured by decision, and what you heard of the assistant, in blocks;
 * where both stand above each other, both were talking. Behind the line of now is what was generated and not yet heard.
 */

import { Brush } from "./brush.js";
import { clock, numLetters } from "./text.js";

const PER_SECOND = 62; // pixels, unless the width or the visitor wants something else
const AHEAD = 0.17; // of the width, for what has not been heard yet
const CHARACTERS_PER_WORD = 6;
const CUT_S = 1.6; // of a cut answer that is shown
const LEAST = 18; // pixels of a slice
const LANE = 47;
const ROWS = { user: 8, decisions: 60, assistant: 84, marks: 146, axis: 160 }; // tops, in pixels
export const HEIGHT = 176;

/** Draws a `Conversation` on a canvas. */
export class Timeline {
  #canvas;
  #brush;
  #tooltip;
  #hits = []; // what is under the pointer: {left, right, top, bottom, said}
  #pointer = null;
  #back = 0; // seconds that the view is behind now; 0: it goes along
  #zoom = 1;
  #start = 0; // time at the left edge
  #scale = PER_SECOND;
  #onmove;

  /** `onmove` is called when the view was moved, and has to be drawn again. */
  constructor(canvas, tooltip, onmove) {
    this.#canvas = canvas;
    this.#brush = new Brush(canvas);
    this.#tooltip = tooltip;
    this.#onmove = onmove;
    this.#listen();
  }

  /** Colours have changed. */
  restyle() {
    this.#brush.restyle();
    this.#onmove();
  }

  /** Show the newest again. */
  follow() {
    this.#back = 0;
  }

  /** Draw `conversation` as of `now` (its time in seconds). `rate` is how many words a second are read. */
  render(conversation, now, rate) {
    const brush = this.#brush;
    const { width } = brush.begin(HEIGHT);
    this.#scale = Math.max(24, Math.min(width / 9, PER_SECOND)) * this.#zoom;
    const right = now - this.#back + (AHEAD * width) / this.#scale;
    this.#start = right - width / this.#scale;
    this.#hits = [];
    const view = { left: this.#start, right };
    const slices = conversation.slices.filter((slice) => !slice.isGone && slice.to >= view.left - 3);
    const blocks = conversation.blocks.filter((block) => block.to >= view.left - 3 && block.from <= right);
    this.#lanes(width, conversation.begin ?? now, view);
    this.#overlaps(slices, blocks);
    this.#blocks(blocks, conversation, now, rate);
    this.#slices(slices);
    this.#decisions(conversation.decisions, view);
    this.#marks(conversation, view);
    if (this.#back === 0) brush.line(this.#x(now), 0, ROWS.axis, "now", 1.5);
    this.#names();
    if (this.#pointer !== null) this.#point();
  }

  #x(at) {
    return (at - this.#start) * this.#scale;
  }

  // ------------------------------------------------------------------ what is drawn

  #lanes(width, begin, { left, right }) {
    const brush = this.#brush;
    brush.box(0, ROWS.user, width, LANE, { fill: "lane" });
    brush.box(0, ROWS.assistant, width, LANE + 8, { fill: "lane" });
    const step = [1, 2, 5, 10, 30, 60].find((seconds) => seconds * this.#scale > 56) ?? 120;
    for (let tick = Math.max(0, Math.ceil((left - begin) / step)); begin + tick * step < right; tick++) {
      const x = this.#x(begin + tick * step);
      brush.line(x, ROWS.user, ROWS.axis, "grid", 1);
      brush.text(clock(tick * step).replace(/\.0$/, ""), x + 3, ROWS.axis + 10, "faint");
    }
  }

  /** Where both are talking. */
  #overlaps(slices, blocks) {
    for (const slice of slices) {
      for (const block of blocks) {
        const from = Math.max(slice.from, block.from);
        const to = Math.min(slice.to, block.to);
        if (to <= from) continue;
        const x = this.#x(from);
        this.#brush.box(x, ROWS.user - 4, Math.max(2, this.#x(to) - x), ROWS.marks - ROWS.user, { fill: "overlap" });
      }
    }
  }

  #slices(slices) {
    slices.forEach((slice, index) => {
      const x = this.#x(slice.from);
      const next = index + 1 < slices.length ? this.#x(slices[index + 1].from) - 2 : Infinity;
      const width = Math.max(LEAST, this.#x(slice.to) - x);
      const ink = slice.decision?.state ?? "waiting";
      const box = { left: x, top: ROWS.user, right: x + width, bottom: ROWS.user + LANE };
      this.#brush.box(x, ROWS.user, width - 1, LANE, { fill: ink, alpha: 0.2, edge: ink, dashes: DASHES[ink] });
      const room = Math.max(width, Math.min(next - x, 150)); // words may stand out where there is nothing
      this.#brush.paragraph(slice, slice.text.trim(), x + 5, ROWS.user + 4, room - 8, LANE - 8, "ink");
      const { outcome } = slice.line;
      this.#hits.push({ ...box, said: { text: slice.line.text, decision: slice.decision, note: outcome } });
    });
  }

  #blocks(blocks, conversation, now, rate) {
    const { running } = conversation;
    const top = ROWS.assistant + 4;
    const last = blocks.at(-1);
    for (const block of blocks) {
      const isGrowing = block === last && block.isOpen && running === block.answer;
      const to = isGrowing && running.heard < running.text.length ? Math.min(now, block.to + 1) : block.to;
      const x = this.#x(block.from);
      const width = Math.max(3, this.#x(to) - x);
      this.#brush.box(x, top, width - 1, LANE, { fill: "assistant", alpha: 0.22, bar: "assistant" });
      this.#brush.paragraph(block, block.text.trim(), x + 5, top + 4, width - 8, LANE - 8, "ink");
      const said = { text: block.text, decision: null, note: "heard" };
      this.#hits.push({ left: x, right: x + width, top, bottom: top + LANE, said });
    }
    if (running !== null && this.#back === 0) this.#ahead(running, last, now, rate);
  }

  /** What was generated and not heard. */
  #ahead(running, last, now, rate) {
    const text = running.text.slice(running.heard);
    if (text.trim() === "") return;
    const top = ROWS.assistant + 4;
    const x = last?.answer === running && last.isOpen ? this.#x(Math.min(now, last.to + 1)) : this.#x(now);
    const width = (numLetters(text) / (CHARACTERS_PER_WORD * rate)) * this.#scale;
    this.#brush.box(x + 1, top, width, LANE, { fill: "ahead", alpha: 0.1, edge: "ahead", dashes: [3, 3] });
    this.#brush.paragraph(running, text.trim(), x + 6, top + 4, width - 10, LANE - 8, "faint");
    const said = { text, decision: null, note: "generated, not heard yet" };
    this.#hits.push({ left: x, right: x + width, top, bottom: top + LANE, said });
  }

  #decisions(decisions, { left, right }) {
    const shown = decisions.filter((decision) => decision.at >= left - 2 && decision.at <= right);
    shown.forEach((decision, index) => {
      const { state, p, speaking, text } = decision;
      const x = this.#x(decision.at);
      const next = index + 1 < shown.length ? this.#x(shown[index + 1].at) : Infinity;
      const doesCut = speaking && (state === "process" || state === "stop");
      this.#brush.line(x, ROWS.user + LANE, doesCut ? ROWS.assistant + LANE + 8 : ROWS.decisions + 9, state, 1.5);
      this.#brush.dot(x, ROWS.decisions + 9, 4, state);
      const label = `${state} ${p.toFixed(2)}`;
      const width = this.#brush.widthOf(label);
      if (next - x > width + 14) this.#brush.text(label, x + 8, ROWS.decisions + 13, state);
      const top = ROWS.decisions;
      this.#hits.push({ left: x - 6, right: x + width + 10, top, bottom: top + 20, said: { text, decision } });
    });
  }

  #marks({ marks, blocks }, { left, right }) {
    for (const { at, kind, label, text } of marks) {
      if (at < left - 4 || at > right) continue;
      const x = this.#x(at);
      const top = ROWS.assistant + 4;
      if (kind in VOLUMES) {
        this.#volume(x, VOLUMES[kind], label);
        continue;
      }
      if (kind === "cut") {
        const next = blocks.find((block) => block.from >= at)?.from ?? Infinity;
        const width = this.#x(Math.min(at + CUT_S, next)) - x;
        if (text.trim() !== "" && width > 4) {
          this.#brush.hatch(x + 1, top, width - 3, LANE, "stop");
          const said = { text, decision: null, note: "generated, cut, never heard" };
          this.#hits.push({ left: x, right: x + width, top, bottom: top + LANE, said });
        }
        this.#brush.line(x, ROWS.assistant, ROWS.marks + 12, "stop", 2);
      } else {
        this.#brush.line(x, ROWS.assistant, ROWS.marks + 12, "assistant", 2);
      }
      const [sign, colour] = kind === "cut" ? ["✂", "stop"] : ["▸", "assistant"];
      this.#brush.text(`${sign} ${label}`, x + 5, ROWS.marks + 9, colour);
    }
  }

  /** What the voice does with an answer, below it. */
  #volume(x, sign, label) {
    this.#brush.text(sign, x - this.#brush.widthOf(sign) / 2, ROWS.marks + 1, "faint");
    const said = { text: label, decision: null, note: "by voice" };
    this.#hits.push({ left: x - 8, right: x + 8, top: ROWS.marks - 7, bottom: ROWS.marks + 3, said });
  }

  #names() {
    this.#brush.tag("▴ you  ▾ assistant", 6, ROWS.decisions + 13);
  }

  // ------------------------------------------------------------------ looking around

  #listen() {
    const canvas = this.#canvas;
    let grabbed = null;
    canvas.addEventListener("pointerdown", (event) => {
      grabbed = { x: event.clientX, back: this.#back };
      canvas.setPointerCapture(event.pointerId);
    });
    canvas.addEventListener("pointermove", (event) => {
      const { left, top } = canvas.getBoundingClientRect();
      this.#pointer = { x: event.clientX - left, y: event.clientY - top };
      if (grabbed !== null) this.#move(grabbed.back + (event.clientX - grabbed.x) / this.#scale);
      else this.#point();
    });
    for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, () => (grabbed = null));
    canvas.addEventListener("pointerleave", () => {
      this.#pointer = null;
      this.#tooltip.hide();
    });
    canvas.addEventListener("wheel", (event) => this.#wheel(event), { passive: false });
    canvas.addEventListener("keydown", (event) => this.#key(event));
    new ResizeObserver(() => this.#onmove()).observe(canvas);
  }

  #wheel(event) {
    if (Math.abs(event.deltaX) <= Math.abs(event.deltaY)) return; // the page is to be scrolled
    event.preventDefault();
    this.#move(this.#back - event.deltaX / this.#scale);
  }

  #key(event) {
    const width = this.#canvas.clientWidth / this.#scale;
    const moves = { ArrowLeft: width / 6, ArrowRight: -width / 6, PageUp: width, PageDown: -width, End: -Infinity };
    if (event.key in moves) this.#move(this.#back + moves[event.key]);
    else if (event.key === "+" || event.key === "-") {
      this.#zoom = Math.max(0.25, Math.min(4, this.#zoom * (event.key === "+" ? 1.25 : 0.8)));
      this.#onmove();
    } else return;
    event.preventDefault();
  }

  #move(back) {
    this.#back = Math.max(0, back);
    this.#onmove();
  }

  #point() {
    const { x, y } = this.#pointer;
    const hit = this.#hits.findLast((one) => x >= one.left && x <= one.right && y >= one.top && y <= one.bottom);
    if (hit === undefined) return this.#tooltip.hide();
    const { left, top } = this.#canvas.getBoundingClientRect();
    const middle = (Math.max(hit.left, 0) + Math.min(hit.right, this.#canvas.clientWidth)) / 2;
    this.#tooltip.show(hit.said, left + middle, top + hit.top);
  }
}

const VOLUMES = { ducked: "▾", yielded: "‖", came_back: "▴" };
const DASHES = { incomplete: [4, 3], ignore: [2, 2], waiting: [1, 3] }; // told apart without colours, too
