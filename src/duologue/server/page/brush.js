/** Drawing on a canvas in the colours and at the sharpness of the page. Knows nothing of conversations. */

import { wordsOf } from "./text.js";

const LINE = 13; // pixels from one line of text to the next
const MOST_MEASURED = 4000; // words whose width is remembered
const COLOURS = ["ink", "faint", "grid", "lane", "now", "overlap", "assistant", "ahead", "waiting",
  "process", "incomplete", "ignore", "stop"]; // prettier-ignore

export class Brush {
  #canvas;
  #context;
  #colours = null;
  #font = "";
  #widths = new Map();
  #layouts = new WeakMap(); // of an item: its text in lines, for a width

  constructor(canvas) {
    this.#canvas = canvas;
    this.#context = canvas.getContext("2d");
  }

  /** Colours and fonts are read anew from the page: `--ink` and so on. */
  restyle() {
    this.#colours = null;
    this.#widths.clear();
    this.#layouts = new WeakMap();
  }

  /** A clean sheet, as wide as the page gives it. Returns {width} in pixels of the page. */
  begin(height) {
    if (this.#colours === null) this.#read();
    const canvas = this.#canvas;
    const width = canvas.clientWidth;
    const ratio = devicePixelRatio || 1;
    if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
      canvas.width = Math.round(width * ratio);
      canvas.height = Math.round(height * ratio);
    }
    this.#context.setTransform(ratio, 0, 0, ratio, 0, 0);
    this.#context.clearRect(0, 0, width, height);
    this.#context.font = this.#font;
    return { width };
  }

  /** A rectangle: `fill` and `edge` are colours, `bar` one for its left side. */
  box(x, y, width, height, { fill, alpha = 1, edge = null, dashes = [], bar = null }) {
    const context = this.#context;
    context.beginPath();
    context.roundRect(x, y, Math.max(0, width), height, edge || bar ? 4 : 0);
    if (alpha < 1) {
      context.fillStyle = this.#colours.lane; // what is behind is not to be seen through it
      context.fill();
    }
    context.globalAlpha = alpha;
    context.fillStyle = this.#colours[fill];
    context.fill();
    context.globalAlpha = 1;
    if (edge !== null) {
      context.strokeStyle = this.#colours[edge];
      context.lineWidth = 1;
      context.setLineDash(dashes);
      context.stroke();
      context.setLineDash([]);
    }
    if (bar !== null) {
      context.fillStyle = this.#colours[bar];
      context.fillRect(x, y + height - 3, Math.max(0, width), 3);
    }
  }

  /** A rectangle of slanted lines. */
  hatch(x, y, width, height, colour) {
    const context = this.#context;
    context.save();
    context.beginPath();
    context.rect(x, y, width, height);
    context.clip();
    context.strokeStyle = this.#colours[colour];
    context.globalAlpha = 0.4;
    context.lineWidth = 1.5;
    context.beginPath();
    for (let at = x - height; at < x + width; at += 7) {
      context.moveTo(at, y + height);
      context.lineTo(at + height, y);
    }
    context.stroke();
    context.restore();
  }

  /** Straight down. */
  line(x, top, bottom, colour, width) {
    const context = this.#context;
    context.strokeStyle = this.#colours[colour];
    context.lineWidth = width;
    context.beginPath();
    context.moveTo(x, top);
    context.lineTo(x, bottom);
    context.stroke();
  }

  dot(x, y, radius, colour) {
    const context = this.#context;
    context.fillStyle = this.#colours[colour];
    context.beginPath();
    context.arc(x, y, radius, 0, 2 * Math.PI);
    context.fill();
  }

  text(text, x, y, colour) {
    this.#context.fillStyle = this.#colours[colour];
    this.#context.fillText(text, x, y);
  }

  /** A word on a ground of its own, so that it can be read above anything. */
  tag(text, x, y) {
    const width = this.widthOf(text);
    this.box(x - 3, y - 10, width + 6, 13, { fill: "lane", alpha: 0.85 });
    this.text(text, x, y, "faint");
  }

  /** `text` in lines within a rectangle; what has no place is left out. `item` is what the text belongs to. */
  paragraph(item, text, x, y, width, height, colour) {
    const most = Math.floor(height / LINE);
    const lines = this.#layout(item, text, Math.floor(width), most);
    this.#context.fillStyle = this.#colours[colour];
    lines.forEach((line, index) => this.#context.fillText(line, x, y + 10 + index * LINE));
  }

  widthOf(text) {
    let width = this.#widths.get(text);
    if (width === undefined) {
      if (this.#widths.size > MOST_MEASURED) this.#widths.clear();
      width = this.#context.measureText(text).width;
      this.#widths.set(text, width);
    }
    return width;
  }

  #layout(item, text, width, most) {
    const known = this.#layouts.get(item);
    if (known !== undefined && known.text === text && known.width === width) return known.lines;
    const lines = this.#wrap(text, width, most);
    this.#layouts.set(item, { text, width, lines });
    return lines;
  }

  #wrap(text, width, most) {
    const lines = [];
    let line = "";
    let used = 0;
    const space = this.widthOf(" ");
    for (const { word, isSpaced } of wordsOf(text)) {
      const needed = this.widthOf(word);
      const gap = isSpaced ? " " : "";
      if (line !== "" && used + (isSpaced ? space : 0) + needed > width) {
        lines.push(line);
        line = "";
        used = 0;
        if (lines.length === most) {
          lines[most - 1] = `${lines[most - 1].slice(0, -1)}…`;
          return lines;
        }
      }
      if (needed > width) {
        if (width < 24) return lines; // nothing can be read in so little
        line = this.#clipped(word, width);
        used = width;
      } else {
        used += needed + (line === "" || !isSpaced ? 0 : space);
        line = line === "" ? word : `${line}${gap}${word}`;
      }
    }
    if (line !== "") lines.push(line);
    return lines;
  }

  #clipped(word, width) {
    let end = word.length;
    while (end > 1 && this.#context.measureText(`${word.slice(0, end)}…`).width > width) end--;
    return `${word.slice(0, end)}…`;
  }

  #read() {
    const probe = document.createElement("span"); // a variable's own value is not a colour yet
    this.#canvas.after(probe);
    const found = COLOURS.map((name) => {
      probe.style.color = `var(--${name})`;
      return [name, getComputedStyle(probe).color];
    });
    probe.remove();
    this.#colours = Object.fromEntries(found);
    this.#font = `11px ${getComputedStyle(this.#canvas).fontFamily}`;
  }
}
