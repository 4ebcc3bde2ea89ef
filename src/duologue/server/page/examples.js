/**
 * Conversations at a click. Only what you would type is written down, and it is typed into the live server in real
 * time: what it makes of it is its own.
 */

const KEY_MS = 55; // from one key to the next
const PATIENCE_MS = 25000; // an answer that does not come is not waited for longer
const LOOK_MS = 50;

/** A step types `say`: text, and pauses in milliseconds. Before it, so many words more of an answer must be heard. */
export const EXAMPLES = [
  {
    title: "Interrupt it",
    about: "A question in the middle of a story cuts the answer where you have heard it.",
    steps: [
      { say: ["Tell me a long story about a fisherman."] },
      { words: 14, say: ["Wait, what is", 600, " the capital of Italy?"] },
      { words: 5 },
    ],
  },
  {
    title: "Talk past it",
    about: "A noise and a word to somebody else: it goes on as if nothing had been said.",
    steps: [
      { say: ["Tell me a long story about a fisherman."] },
      { words: 10, say: ["mhm"] },
      { words: 10, say: ["Honey, have you seen my keys?"] },
      { words: 14 },
    ],
  },
  {
    title: "Think while you speak",
    about: "Half a sentence and a pause: it waits for the rest before it answers.",
    steps: [
      { say: ["Can you tell me", 900, " what the weather", 900, " is like on the planet Mars?"] },
      { words: 12 },
    ],
  },
  {
    title: "Stop, and go on",
    about: "“stop” silences it, “go on” lets the same answer go on from the word you heard last.",
    steps: [
      { say: ["Tell me a long story about a fisherman."] },
      { words: 12, say: ["stop"] },
      { wait: 2000, say: ["go on"] },
      { words: 10, say: ["Okay, stop please."] },
    ],
  },
];

/** Types an example into a `Composer`, until it is done or somebody else types. */
export class Typist {
  #composer;
  #numHeard; // () => words heard in this conversation so far
  #run = null;

  constructor(composer, numHeard) {
    this.#composer = composer;
    this.#numHeard = numHeard;
  }

  get isTyping() {
    return this.#run !== null;
  }

  cancel() {
    this.#run?.abort();
    this.#run = null;
  }

  /** Returns whether it came to its end. */
  async play(example) {
    this.cancel();
    const run = (this.#run = new AbortController());
    const { signal } = run;
    for (const { words = 0, wait = 0, say = [] } of example.steps) {
      await sleep(wait, signal);
      await this.#heard(words, signal);
      for (const part of say) await this.#type(part, signal);
      if (signal.aborted) return false;
      if (say.length > 0) this.#composer.enter();
    }
    if (this.#run === run) this.#run = null;
    return !signal.aborted;
  }

  async #heard(words, signal) {
    const enough = this.#numHeard() + words;
    const until = performance.now() + PATIENCE_MS;
    while (this.#numHeard() < enough && performance.now() < until && !signal.aborted) await sleep(LOOK_MS, signal);
  }

  async #type(part, signal) {
    if (typeof part === "number") return sleep(part, signal);
    for (const key of part) {
      if (signal.aborted) return;
      this.#composer.type(key);
      await sleep(KEY_MS, signal);
    }
  }
}

function sleep(ms, signal) {
  if (ms <= 0 || signal.aborted) return Promise.resolve();
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, ms);
    signal.addEventListener("abort", () => (clearTimeout(timer), resolve()), { once: true });
  });
}
