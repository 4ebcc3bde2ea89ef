/**
 * The page: one conversation, or two that are told the same, or a recorded one; and what is drawn of them, once a frame
 * while something happens.
 */

import { Announcer } from "./announcer.js";
import { Composer, isByInputMethod } from "./composer.js";
import { controls } from "./controls.js";
import { EventLog, download } from "./eventlog.js";
import { EXAMPLES, Typist } from "./examples.js";
import { Figures } from "./figures.js";
import { Player } from "./player.js";
import { format, parse } from "./record.js";
import { Settings, keepToken, takeToken } from "./settings.js";
import { Talk } from "./talk.js";
import { clock, numWords } from "./text.js";
import { Tooltip } from "./tooltip.js";
import { View } from "./view.js";
import { Voice } from "./voice.js";

const REST_S = 2.5; // after the newest event, the time on the screen goes on for so long
const STORED = "duologue-talks";
const TITLES = { duplex: "duplex", turns: "turns", vad: "voice activity" };

const $ = (id) => document.getElementById(id);
const settings = new Settings();
const tooltip = new Tooltip($("tooltip"));
const announcer = new Announcer($("live-region"));
const figures = new Figures($("figures"));
const log = new EventLog({ body: $("events"), filter: $("filter"), count: $("num-events") });
const composer = new Composer($("input"), settings, hear, () => typist.cancel());
const typist = new Typist(composer, numHeard);
const voice = new Voice($("voice"), showBanner);

let token = takeToken();
let talks = [];
let views = [];
let player = null;

// ------------------------------------------------------------------------------------------------------- conversations

function kinds() {
  const beside = settings.get("compare");
  return beside === "off" ? ["duplex"] : ["duplex", beside];
}

/** Talks of the kinds that are wanted. Those of `origins` (by kind) go on, others are new. */
function begin(origins = {}) {
  typist.cancel();
  composer.clear();
  for (const talk of talks) talk.end();
  talks = kinds().map((kind) => open(kind, origins[kind]));
  arrange();
  store();
}

function open(kind, origin) {
  const talk = new Talk(kind, settings, token, origin ?? null);
  talk.addEventListener("change", wake);
  talk.addEventListener("status", tellStatus);
  talk.addEventListener("began", () => {
    $("model").textContent = talk.model;
    if (talk === talks[0]) voice.attach(talk);
    store();
  });
  if (kind === "duplex") talk.addEventListener("took", ({ detail }) => announcer.take(detail, talk.conversation));
  return talk;
}

/** So that the page can be loaded again without an end of the conversation. */
function store() {
  const origins = Object.fromEntries(talks.filter((talk) => talk.origin).map((talk) => [talk.kind, talk.origin]));
  sessionStorage.setItem(STORED, JSON.stringify(origins));
}

function stored() {
  try {
    return JSON.parse(sessionStorage.getItem(STORED)) ?? {};
  } catch {
    return {};
  }
}

/** One view for each talk, or for the recorded conversation. */
function arrange() {
  for (const view of views) view.remove();
  const wanted = player !== null ? ["recorded"] : talks.map((talk) => talk.kind);
  views = wanted.map((kind) => new View(kind, $("view"), $("views"), tooltip, wake));
  $("views").dataset.count = String(views.length);
  if (player !== null) views[0].name("recorded", `${player.head.model ?? ""} ${player.head.began ?? ""}`);
  $("player").hidden = player === null;
  $("composer").hidden = player !== null;
  $("which").hidden = talks.length < 2 || player !== null;
  $("which").replaceChildren(...talks.map((talk) => new Option(TITLES[talk.kind], talk.kind)));
  tellStatus();
  wake();
}

function hear(text, utterance, final) {
  for (const talk of talks) talk.hear(text, utterance, final);
}

function numHeard() {
  return talks[0].conversation.blocks.reduce((sum, { text }) => sum + numWords(text), 0);
}

function stop() {
  typist.cancel();
  const speaking = talks.filter((talk) => talk.conversation.running !== null);
  for (const talk of speaking) talk.command("stop");
  if (speaking.length === 0) composer.clear();
}

function resume() {
  for (const talk of talks) talk.command("resume");
}

/** What is typed is answered, whatever is thought of it. */
function respond() {
  composer.enter();
  for (const talk of talks) talk.command("respond");
}

// ------------------------------------------------------------------------------------------------------------- drawing

let isAwake = false;
let drawnAt = 0; // seconds of the page's clock
let shownAt = 0; // the time that is on the screen
let activeAt = 0; // when something last happened

function wake() {
  activeAt = performance.now() / 1000;
  if (isAwake) return;
  isAwake = true;
  drawnAt = activeAt;
  requestAnimationFrame(frame);
}

function frame(ms) {
  const now = ms / 1000;
  const elapsed = Math.max(0, now - drawnAt);
  drawnAt = now;
  if (player !== null) player.step(elapsed);
  else for (const talk of talks) talk.step(elapsed); // what is not shown is not read
  if (talks.some((talk) => talk.isActive) || player?.isPlaying) activeAt = now;
  const target = Math.min(now, activeAt + REST_S);
  shownAt = Math.max(shownAt, target - (target - shownAt) * Math.exp(-12 * elapsed)); // where it rested, it catches up
  draw();
  isAwake = now < activeAt + REST_S || target - shownAt > 0.01;
  if (isAwake) requestAnimationFrame(frame);
}

function draw() {
  const rate = settings.get("rate");
  if (player !== null) {
    views[0].render(player.conversation, player.now, rate);
    showPlayer();
  } else {
    views.forEach((view, index) => view.render(talks[index].conversation, talks[index].timeAt(shownAt), rate));
  }
  figures.render(player !== null ? [{ title: "", conversation: player.conversation }] : talks.map(column));
  if ($("log").open) drawLog();
}

function column(talk) {
  return { title: TITLES[talk.kind], conversation: talk.conversation };
}

function drawLog() {
  if (player !== null) return log.render(player.events, player.events[0]?.at ?? 0);
  const { keeper, conversation } = logged();
  if (keeper !== null) log.render(keeper.events, conversation.begin, keeper.numDropped);
}

/** The talk whose events are shown. */
function logged() {
  return talks.find((talk) => talk.kind === $("which").value) ?? talks[0];
}

// ------------------------------------------------------------------------------------------------------------ recorded

function showPlayer() {
  const { time, length, isPlaying } = player;
  $("seek").max = String(Math.ceil(length * 20) / 20); // in its steps
  if (document.activeElement !== $("seek") || isPlaying) $("seek").value = String(time);
  $("time").textContent = `${clock(time)} of ${clock(length)}`;
  $("play").textContent = isPlaying ? "❚❚" : "▶";
  $("play").setAttribute("aria-label", isPlaying ? "pause" : "play");
}

function openRecord(text) {
  try {
    player = new Player(parse(text));
  } catch (error) {
    return showBanner(`This file cannot be shown: ${error.message}`);
  }
  hideBanner();
  typist.cancel();
  voice.end();
  arrange();
  player.toggle();
  player.speed = Number($("speed").value);
  $("seek").focus();
}

function closeRecord() {
  player = null;
  arrange();
  composer.focus();
}

async function openFile(file) {
  if (file) openRecord(await file.text());
}

// ------------------------------------------------------------------------------------------------------------ messages

let onBanner = null;

function showBanner(text, label = "Close", action = hideBanner) {
  $("banner").querySelector("span").textContent = text;
  $("banner").querySelector("button").textContent = label;
  onBanner = action;
  $("banner").hidden = false;
}

function hideBanner() {
  $("banner").hidden = true;
}

function tellStatus() {
  if (player !== null) return;
  views.forEach((view, index) => view.tell(talks[index].status));
  const { name, text } = (talks.find((talk) => talk.status.name !== "open") ?? talks[0]).status;
  $("token").hidden = name !== "refused";
  if (name === "over") showBanner(text, "A new conversation", () => begin());
  else if (name === "taken") showBanner(text, "Take it back", () => talks.forEach((talk) => talk.connect(token)));
  else if (name === "full") showBanner(text);
  else hideBanner();
  if (name === "lost") announcer.tell("The connection was lost.");
}

// -------------------------------------------------------------------------------------------------------------- wiring

function renew() {
  hideBanner();
  if (player !== null) closeRecord();
  begin();
  composer.focus();
}

async function show(example) {
  if (player !== null) closeRecord();
  if (talks.some((talk) => talk.conversation.entries.length > 0)) renew();
  if (matchMedia("(pointer: fine)").matches) composer.focus(); // else a keyboard would cover it
  scrollTo({ top: 0 });
  await typist.play(example);
}

function listExamples() {
  for (const example of EXAMPLES) {
    const item = document.createElement("li");
    const button = document.createElement("button");
    button.type = "button";
    button.append(Object.assign(document.createElement("b"), { textContent: example.title }), ` ${example.about}`);
    button.addEventListener("click", () => show(example));
    item.append(button);
    $("examples").append(item);
  }
}

function keys(event) {
  if (isByInputMethod(event)) return; // Escape ends a composition, not the answer
  if (event.key === "Escape" && !event.target.matches("#filter, #system, select")) stop();
  else if (event.key === "Enter" && event.ctrlKey && event.shiftKey) resume();
  else if (event.key === "Enter" && event.ctrlKey) respond();
  else return;
  event.preventDefault();
}

function applyTheme() {
  const theme = settings.get("theme");
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  $("theme").textContent = { auto: "◐", light: "☀", dark: "☾" }[theme];
  $("theme").setAttribute("aria-label", `colours: ${theme}`);
  for (const view of views) view.timeline.restyle();
}

function onSetting({ detail: { key, value } }) {
  if (key === "eagerness" || key === "interruptible") for (const talk of talks) talk.change(key, value);
  else if (key === "theme") applyTheme();
  else if (key === "compare") renew();
}

function wire() {
  const on = (id, kind, act) => $(id).addEventListener(kind, act);
  settings.addEventListener("change", onSetting);
  controls(settings, $);
  on("new", "click", renew);
  for (const [id, act] of Object.entries({ stop, resume, respond })) {
    on(id, "click", act);
    on(id, "pointerdown", (event) => event.preventDefault()); // the text that is being typed keeps the focus
  }
  on("open", "click", () => $("file").click());
  on("file", "change", ({ target }) => openFile(target.files[0]).then(() => (target.value = "")));
  on("again", "click", () => openRecord(format(logged().keeper.record())));
  on("download", "click", () => {
    const name = player === null ? logged().kind : "recorded";
    download(`${name}.jsonl`, format(player === null ? logged().keeper.record() : player.record));
  });
  on("live", "click", closeRecord);
  on("play", "click", () => (player.toggle(), wake()));
  on("seek", "input", ({ target }) => ((player.isPlaying = false), player.seek(Number(target.value)), wake()));
  on("speed", "change", ({ target }) => (player.speed = Number(target.value)));
  on("filter", "input", drawLog);
  on("which", "change", drawLog);
  on("log", "toggle", wake);
  $("banner").querySelector("button").addEventListener("click", () => onBanner());
  on("token", "submit", (event) => {
    event.preventDefault();
    token = $("token").querySelector("input").value;
    keepToken(token);
    for (const talk of talks) talk.connect(token);
  });
  document.addEventListener("keydown", keys);
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    openFile(event.dataTransfer.files[0]);
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", applyTheme);
  addEventListener("online", () => talks.forEach((talk) => talk.connect(token)));
}

wire();
listExamples();
begin(stored());
applyTheme();
