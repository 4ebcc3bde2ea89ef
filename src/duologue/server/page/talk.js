/** A live conversation: what is said goes to the server, and what comes back becomes a `Conversation`. */

import { Conversation } from "./conversation.js";
import { Keeper } from "./record.js";
import { Reader } from "./reader.js";
import { Wire } from "./wire.js";

/**
 * Tells "change" (something is to be drawn), "status", "took" (with the event) and "began"; of a voice, "voice" (with what
 * it does), "sound" (with a piece) and "voiceless" (it has none any more).
 */
export class Talk extends EventTarget {
  kind;
  conversation = new Conversation();
  keeper = null; // since the conversation began
  status = { name: "connecting", text: "connecting" };
  model = "";
  hasVoice = false; // whether its server can speak
  #voice = false; // the settings of the voice, where it speaks
  #began; // history
  #wire;
  #settings;
  #offset = null; // of this page's clock from the session's, in seconds: the least that was seen
  #reader = new Reader((position, answer) => this.#wire.say({ type: "heard", position, answer }));

  /** `kind` is the server's: duplex, turns, vad. `origin`: of one that goes on. `base`: of a server elsewhere. */
  constructor(kind, settings, token, origin = null, base = undefined) {
    super();
    this.kind = kind;
    this.#began = origin?.history ?? [];
    this.#settings = settings;
    const told = {
      status: (name, text) => this.#become(name, text),
      started: (message) => this.#started(message),
      event: (event) => this.#take(event),
      problem: (code, text) => this.#fail(code, text),
      voice: (message) => this.#takeVoice(message),
      binary: (buffer) => this.dispatchEvent(new CustomEvent("sound", { detail: buffer })),
    };
    const start = () => ({ settings: settings.forSession(kind), history: this.conversation.history });
    this.#wire = new Wire({ start, token, session: origin?.session ?? null, told, base });
    this.#wire.open();
  }

  /** By which another page takes it up: {session, history it began with}; null before it began. */
  get origin() {
    return this.#wire.session === null ? null : { session: this.#wire.session, history: this.#began };
  }

  /** The conversation's time, at a time of this page's clock (seconds). */
  timeAt(seconds) {
    return this.#offset === null ? this.conversation.now : Math.max(this.conversation.now, seconds - this.#offset);
  }

  /** Whether an answer is being heard, or words are. */
  get isActive() {
    return this.conversation.running !== null || this.conversation.isListening;
  }

  /** `seconds` went by, in which the user read on. */
  step(seconds) {
    if (this.#wire.isOpen && !this.#voice) this.#reader.step(this.conversation.running, seconds, this.#settings.get("rate"));
  }

  hear(text, utterance, final) {
    this.#wire.say({ type: "hear", text, utterance, final });
  }

  /** "respond", "stop" or "resume". */
  command(type) {
    this.#wire.say({ type });
  }

  change(key, value) {
    this.#wire.say({ type: "settings", [key]: value });
  }

  /** Speak, with these settings (see "Sound" in docs/protocol.md), or, with false, be read again. */
  voice(settings) {
    this.#voice = settings;
    this.#wire.say({ type: "settings", voice: settings });
  }

  /** What the microphone heard. */
  sendSound(buffer) {
    if (this.#voice) this.#wire.sendBinary(buffer);
  }

  /** Try again, with another token. */
  connect(token) {
    this.#wire.open(token);
  }

  /** The connection is cut, as a network may do, and made again. */
  reconnect() {
    this.#wire.reconnect();
  }

  end() {
    this.#wire.end();
  }

  #started(message) {
    const isNew = this.keeper === null || !message.resumed;
    this.model = message.model;
    this.hasVoice = message.has_voice === true;
    if (message.settings.voice && !this.#voice) this.voice(false); // the page that spoke had been loaded before this one
    else if (!message.settings.voice && this.#voice && this.hasVoice) this.voice(this.#voice); // it does not know
    this.#offset = null;
    const isForgotten = this.keeper !== null && !message.resumed;
    if (isNew || message.missed) this.#begin(message);
    if (isForgotten) this.#note("the server had forgotten what was said; it was told again");
    if (!this.hasVoice) this.#loseVoice("the server has none any more");
    this.dispatchEvent(new Event("began"));
    this.#changed();
  }

  #begin({ missed, resumed, history, running, asked, settings, model, number }) {
    if (resumed && !missed && this.keeper === null && number === 0) {
      history = this.#began; // all that followed is told again
      this.conversation = new Conversation(history);
    } else {
      this.conversation = missed ? new Conversation(history, running, asked) : new Conversation(history);
    }
    this.#began = history;
    this.keeper = new Keeper({ model, settings }, history);
  }

  #take(event) {
    const offset = performance.now() / 1000 - event.at;
    if (this.#offset === null || offset < this.#offset) this.#offset = offset;
    this.#keep(event);
    this.dispatchEvent(new CustomEvent("took", { detail: event }));
  }

  /** What the voice does has the time of the sound; it is kept beside the events with theirs. */
  #takeVoice(message) {
    this.dispatchEvent(new CustomEvent("voice", { detail: message }));
    this.#keep({ ...message, at: Number(this.timeAt(performance.now() / 1000).toFixed(4)) });
  }

  #keep(event) {
    this.conversation.take(event);
    this.keeper.add(event);
    this.#changed();
  }

  #fail(code, text) {
    if (code === "full" || code === "no_voice") this.#loseVoice(text);
    else if (code !== "bad_message" || this.#voice) this.#note(`not done: ${text}`); // else sound that was on its way
  }

  #loseVoice(why) {
    if (!this.#voice) return;
    this.#voice = false;
    this.#note(`the voice is off: ${why}`);
    this.dispatchEvent(new Event("voiceless"));
  }

  #become(name, text) {
    this.status = { name, text };
    if (name === "taken" || name === "over") this.#loseVoice(text);
    this.dispatchEvent(new Event("status"));
  }

  #note(text) {
    this.conversation.note(text);
    this.#changed();
  }

  #changed() {
    this.dispatchEvent(new Event("change"));
  }
}
