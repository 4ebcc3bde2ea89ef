/** The page of a study: ballots one after the other, each with two conversations and the questions about them. */

import { keepToken, takeToken } from "../page/settings.js";
import { Voice } from "../page/voice.js";
import { Api, Refused } from "./api.js";
import { Talking } from "./talking.js";
import { Votes } from "./votes.js";
import { Watching } from "./watching.js";

const STORED = "duologue-rater";
const HINTS = {
  pairs: "You can answer when you have watched both to the end.",
  talk: "You can answer when both have spoken to you.",
};

const $ = (id) => document.getElementById(id);
const api = new Api(takeToken(), (text) => tell(text));
const voice = new Voice($("voice"), tell);
const votes = new Votes($("ballot"), $("questions"), $("question"), (cast) => save(cast));

let study = null; // {form, criteria}
let rater = localStorage.getItem(STORED);
let ballot = null;
let conversations = null; // Watching or Talking
let saving = Promise.resolve(); // votes are sent one after the other

function tell(text) {
  $("banner").textContent = text;
  $("banner").hidden = text === "";
}

/** Only one of these is to be seen. */
function reveal(id) {
  for (const one of ["welcome", "work", "finished"]) $(one).hidden = one !== id;
}

/** Run `act`; what the server refuses is shown. Returns whether it did nothing of the kind. */
async function attempt(act) {
  try {
    await act();
    return true;
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    $("token").hidden = error.status !== 401;
    if (error.status !== 401) tell(error.message);
    return false;
  }
}

function forget() {
  localStorage.removeItem(STORED);
  rater = null;
  welcome();
}

/** The page begins: for a new rater, or where this one was. */
async function start() {
  study = await api.ask("api/study");
  $("token").hidden = true;
  if (rater === null) welcome();
  else await next();
}

function welcome() {
  $("progress").textContent = "";
  for (const text of document.querySelectorAll("[data-form]")) text.hidden = text.dataset.form !== study.form;
  reveal("welcome");
}

async function begin() {
  if (rater === null) {
    rater = (await api.ask("api/join", {})).rater;
    localStorage.setItem(STORED, rater);
  }
  await next();
}

/** The next ballot, as the server says. A rater that it does not know begins again. */
async function next() {
  conversations?.end();
  conversations = null;
  let found;
  try {
    found = await api.ask(`api/next?rater=${encodeURIComponent(rater)}`);
  } catch (error) {
    if (error instanceof Refused && error.status === 404) return forget();
    throw error;
  }
  ballot = found.ballot;
  $("progress").textContent = `${found.done} of ${found.of} done`;
  if (ballot === null) return reveal("finished");
  reveal("work");
  ask();
}

function ask() {
  const { form, criteria } = study;
  const isOpen = Object.keys(ballot.votes).length > 0; // some questions were answered before
  const boxes = [$("a"), $("b")];
  for (const box of boxes) box.replaceChildren();
  votes.ask(criteria, ballot.votes);
  enable(isOpen);
  $("hint").textContent = HINTS[form];
  $("saved").textContent = "";
  $("player").hidden = form !== "pairs";
  $("composer").hidden = form !== "talk";
  const sides = [ballot.a, ballot.b];
  const shown = ballot;
  const seen = () => ballot === shown && !votes.isEnabled && enable(true);
  if (form === "pairs") conversations = new Watching(sides, boxes, named("play", "seek", "time", "speed"), seen);
  else conversations = new Talking(sides, boxes, named("input", "switch", "status"), voice, api.token, seen);
}

function named(...ids) {
  return Object.fromEntries(ids.map((id) => [id, $(id)]));
}

function enable(isEnabled) {
  votes.isEnabled = isEnabled;
  $("next").disabled = !isEnabled;
  $("hint").hidden = isEnabled;
}

/** Send votes behind those that are on their way. */
function save(cast) {
  const { example } = ballot;
  $("saved").textContent = "saving";
  saving = saving.then(() =>
    attempt(async () => {
      await api.ask("api/ballot", { rater, example, votes: cast });
      $("saved").textContent = "saved";
    }),
  );
}

$("begin").addEventListener("click", () => attempt(begin));
$("another").addEventListener("click", forget);
$("ballot").addEventListener("submit", async (event) => {
  event.preventDefault();
  $("next").disabled = true; // two clicks are one
  await saving;
  if (!(await attempt(next))) $("next").disabled = false;
  scrollTo({ top: 0 });
});
$("token").addEventListener("submit", (event) => {
  event.preventDefault();
  api.token = $("token").querySelector("input").value;
  keepToken(api.token);
  attempt(start);
});

attempt(start);
