/**
 * The part of sound.js that runs beside the page, 128 samples at a time: what is heard is sent in pieces of 20 ms, what
 * comes is played in order. It begins to play when there are 60 ms of it, since pieces come by a network.
 */

const PIECE = 480; // samples that are sent at a time
const ENOUGH = 1440; // samples that wait before it begins to play
const FADE = 96; // samples of a cut

class Sound extends AudioWorkletProcessor {
  #heard = new Int16Array(PIECE);
  #numHeard = 0;
  #waiting = []; // Int16Arrays
  #at = 0; // of the first
  #numWaiting = 0;
  #isPlaying = false;
  #patience = 0; // samples until what waits is played, though it is not enough: no more may come
  #fade = 0; // samples left of a cut
  #last = 0;

  constructor() {
    super();
    this.port.onmessage = ({ data }) => (data === "cut" ? this.#cut() : this.#add(new Int16Array(data)));
  }

  process([input], [output]) {
    if (input.length > 0) this.#listen(input[0]);
    const out = output[0];
    if (!this.#isPlaying && this.#numWaiting > 0) {
      this.#patience -= out.length;
      this.#isPlaying = this.#numWaiting >= ENOUGH || this.#patience <= 0;
    }
    for (let i = 0; i < out.length; i++) out[i] = this.#next();
    return true;
  }

  #listen(samples) {
    for (const sample of samples) {
      this.#heard[this.#numHeard++] = Math.round(Math.max(-1, Math.min(1, sample)) * 32767);
      if (this.#numHeard < PIECE) continue;
      this.port.postMessage(this.#heard.buffer, [this.#heard.buffer]);
      this.#heard = new Int16Array(PIECE);
      this.#numHeard = 0;
    }
  }

  #add(samples) {
    if (this.#numWaiting === 0) this.#patience = 2 * ENOUGH;
    this.#waiting.push(samples);
    this.#numWaiting += samples.length;
  }

  #cut() {
    this.#waiting = [];
    this.#at = this.#numWaiting = 0;
    this.#isPlaying = false;
    this.#fade = FADE;
  }

  #next() {
    if (this.#fade > 0) return (this.#last * --this.#fade) / FADE;
    if (!this.#isPlaying || this.#numWaiting === 0) {
      this.#isPlaying = false;
      return (this.#last = 0);
    }
    this.#last = this.#waiting[0][this.#at++] / 32767;
    this.#numWaiting--;
    if (this.#at === this.#waiting[0].length) {
      this.#waiting.shift();
      this.#at = 0;
    }
    return this.#last;
  }
}

registerProcessor("duologue-sound", Sound);
