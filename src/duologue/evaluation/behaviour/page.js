const $ = id => document.getElementById(id);
const COLOURS = {process: "#1a7f37", incomplete: "#9a6700", ignore: "#6e7781", stop: "#cf222e"};
let shown = [], chosen = 0;

function node(name, attributes, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

function option(select, names) {
  for (const name of names) select.append(new Option(name, name));
}

function refill() {
  const all = DATA[$("session").value];
  shown = all.filter(c => ($("kind").value === "all" || c.kind === $("kind").value) && !($("wrong").checked && c.right));
  $("list").replaceChildren(...shown.map((c, i) => {
    const item = document.createElement("li");
    item.textContent = c.id;
    item.className = c.right ? "" : "wrong";
    item.onclick = () => choose(i);
    return item;
  }));
  $("count").textContent = `${shown.filter(c => c.right).length} of ${shown.length} right`;
  choose(0);
}

function choose(index) {
  if (!shown.length) { $("case").replaceChildren(); return; }
  chosen = Math.max(0, Math.min(shown.length - 1, index));
  [...$("list").children].forEach((item, i) => item.classList.toggle("chosen", i === chosen));
  $("list").children[chosen].scrollIntoView({block: "nearest"});
  draw(shown[chosen]);
}

function line(role, text, mark) {
  const made = document.createElement("div");
  made.className = "turn";
  const who = document.createElement("b");
  who.textContent = role;
  made.append(who, text);
  if (mark) made.classList.add(mark);
  return made;
}

function draw(c) {
  const width = Math.max(800, c.end * 80), x = s => 10 + s / c.end * (width - 30);
  const height = 256 + 22 * c.verdicts.length;
  const svg = node("svg", {width, height, role: "img", "aria-label": `timeline of ${c.id}`});
  for (let s = 0; s <= c.end; s++) {
    svg.append(node("line", {x1: x(s), x2: x(s), y1: 14, y2: height, stroke: "#eaeef2"}));
    svg.append(node("text", {x: x(s) + 2, y: 11, fill: "#59636e"}, `${s} s`));
  }
  let level = 0, before = "";
  for (const [at, utterance, text, final] of c.words) {
    const fresh = before && text.startsWith(before.text) && utterance === before.utterance ? text.slice(before.text.length).trim() : text;
    before = {utterance, text};
    svg.append(node("line", {x1: x(at), x2: x(at), y1: 22, y2: 96, stroke: final ? "#0969da" : "#54aeff"}));
    if (fresh) svg.append(node("text", {x: x(at) + 3, y: 34 + 14 * (level++ % 4), fill: "#0969da"}, fresh));
  }
  svg.append(node("text", {x: 10, y: 110, fill: "#59636e"}, "decisions"));
  c.decided.forEach(([at, text, state, p], i) => {
    const dot = node("circle", {cx: x(at), cy: 116, r: 5, fill: COLOURS[state]});
    dot.append(node("title", {}, `${text}: ${state} ${p}`));
    svg.append(dot, node("text", {x: x(at) - 3, y: 132 + 12 * (i % 3), fill: COLOURS[state]}, `${state} ${p}`));
  });
  c.spoken.forEach(([answer, start, end, text, asked, cut]) => {
    svg.append(node("rect", {x: x(start), y: 168, width: Math.max(2, x(end) - x(start)), height: 26, fill: answer % 2 ? "#b083f0" : "#8250df", rx: 3}));
    const clip = node("svg", {x: x(start), y: 168, width: Math.max(2, x(end) - x(start)), height: 26});
    clip.append(node("text", {x: 4, y: 17, fill: "white"}, text), node("title", {}, `answers “${asked}”: ${text}`));
    svg.append(clip);
    if (cut) svg.append(node("line", {x1: x(end), x2: x(end), y1: 162, y2: 200, stroke: "#cf222e", "stroke-width": 2}));
  });
  svg.append(node("text", {x: 10, y: 216, fill: "#59636e"}, "expected"));
  c.verdicts.forEach((v, i) => {
    const y = 224 + 22 * i, colour = v.problem ? "#cf222e" : "#1a7f37";
    svg.append(node("rect", {x: x(v.from), y, width: Math.max(2, x(v.at) - x(v.from)), height: 14, fill: colour, opacity: .25}));
    svg.append(node("rect", {x: x(v.at), y, width: Math.max(2, x(v.until) - x(v.at)), height: 14, fill: colour, opacity: .6}));
    svg.append(node("text", {x: x(v.from) + 3, y: y + 11}, `${v.action}: ${v.problem || "right"}${v.delay_s === null ? "" : `, ${v.delay_s} s`}`));
  });
  const title = document.createElement("h2");
  title.textContent = `${c.id} (${c.kind})`;
  const turns = c.history.map(turn => line(turn.role, turn.text));
  if (c.answer) turns.push(line("speaking", c.answer));
  const context = c.context === null ? [] : [line("context", c.context ? "holds exactly what was heard" : "does not hold what was heard", c.context ? "right" : "wrong")];
  $("case").replaceChildren(title, ...turns, svg, ...context);
}

option($("session"), Object.keys(DATA));
option($("kind"), ["all", ...new Set(Object.values(DATA)[0].map(c => c.kind))]);
for (const id of ["session", "kind", "wrong"]) $(id).onchange = refill;
document.onkeydown = event => {
  if (event.key === "ArrowDown") { choose(chosen + 1); event.preventDefault(); }
  if (event.key === "ArrowUp") { choose(chosen - 1); event.preventDefault(); }
};
refill();
