/** The microphone beside the composer: a button, and what goes between the sound of this machine and a talk. */

import { LATENCY_MS, RATE, Sound } from "./sound.js";

const REFUSED = { NotAllowedError: "the browser may not use the microphone", NotFoundError: "there is no microphone" };

export class Voice {
  #host;
  #button = document.createElement("button");
  #state = document.createElement("span");
  #tell;
  #talk = null;
  #sound = null;
  #onSound = ({ detail }) => this.#sound?.play(detail);
  #onVoice = ({ detail }) => this.#take(detail);
  #onVoiceless = () => this.#close();

  /** `host` is where the button goes; `tell(text)` says what is wrong. */
  constructor(host, tell) {
    this.#host = host;
    this.#tell = tell;
    this.#button.type = "button";
    this.#button.id = "microphone";
    this.#button.textContent = "Speak";
    this.#button.title = "speak with it; it hears you while it speaks";
    this.#button.setAttribute("aria-pressed", "false");
    this.#button.addEventListener("click", () => (this.#sound === null ? this.#begin() : this.end()));
    this.#state.setAttribute("role", "status");
    host.append(this.#button, this.#state);
  }

  /** Speak with `talk` from now on; the button is there if its server has a voice. */
  attach(talk) {
    if (talk !== this.#talk) {
      this.end();
      const listeners = { sound: this.#onSound, voice: this.#onVoice, voiceless: this.#onVoiceless };
      for (const [type, listener] of Object.entries(listeners)) {
        this.#talk?.removeEventListener(type, listener);
        talk.addEventListener(type, listener);
      }
      this.#talk = talk;
    }
    this.#host.hidden = !(talk.hasVoice && Sound.isPossible);
  }

  /** Give the microphone back. */
  end() {
    if (this.#sound === null) return;
    this.#close();
    this.#talk.voice(false);
  }

  #close() {
    this.#sound?.close();
    this.#sound = null;
    this.#show(false, "");
  }

  async #begin() {
    const talk = this.#talk;
    this.#button.disabled = true;
    try {
      const sound = await Sound.open((buffer) => talk.sendSound(buffer));
      if (talk !== this.#talk) return sound.close();
      this.#sound = sound;
      talk.voice({ rate: RATE, latency_ms: LATENCY_MS });
      this.#show(true, "listening");
    } catch (error) {
      this.#tell(`No voice: ${REFUSED[error.name] ?? error.message}.`);
    } finally {
      this.#button.disabled = false;
    }
  }

  #take({ what, message }) {
    if (this.#sound === null) return;
    if (what === "cut") this.#sound.cut();
    else if (what === "speech_started") this.#show(true, "you are heard");
    else if (what === "speech_ended") this.#show(true, "listening");
    else if (what === "recogniser_failed" || what === "synthesiser_failed") this.#tell(`The voice failed: ${message}`);
  }

  #show(isOn, state) {
    this.#button.setAttribute("aria-pressed", String(isOn));
    this.#button.textContent = isOn ? "Microphone off" : "Speak";
    this.#state.textContent = state;
  }
}
