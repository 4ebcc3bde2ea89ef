/**
 * The text one types: it is heard while it is typed. A pause sends what there is; Enter ends the utterance. What an
 * input method composes is typed once it is committed.
 */

export class Composer {
  #input;
  #hear;
  #settings;
  #timer = 0;
  #isOpen = false;
  #isComposing = false;
  #sent = "";
  #prefix = Math.random().toString(36).slice(2, 6); // another page's utterances must not be taken for these
  #count = 0;

  /** `hear(text, utterance, final)` is told what is typed; `onuser` that somebody typed, and no example. */
  constructor(input, settings, hear, onuser) {
    this.#input = input;
    this.#settings = settings;
    this.#hear = hear;
    input.addEventListener("input", (event) => {
      if (event.isTrusted) onuser();
      if (!this.#isComposing) this.#typed();
    });
    input.addEventListener("compositionstart", () => {
      this.#isComposing = true;
      clearTimeout(this.#timer);
      onuser();
    });
    input.addEventListener("compositionend", () => {
      this.#isComposing = false;
      this.#typed();
    });
    input.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.ctrlKey || isByInputMethod(event)) return;
      event.preventDefault();
      onuser();
      this.enter();
    });
  }

  get text() {
    return this.#input.value;
  }

  get isEnabled() {
    return !this.#input.disabled;
  }

  set isEnabled(isEnabled) {
    this.#input.disabled = !isEnabled;
  }

  focus() {
    this.#input.focus({ preventScroll: true });
  }

  /** Type at the end of what there is, as a key would. */
  type(characters) {
    this.#input.value += characters;
    this.#typed();
  }

  /** What is typed is the whole utterance. */
  enter() {
    const text = this.#input.value.trim();
    if (text !== "" || this.#isOpen) this.#end(text);
  }

  /** What is typed is taken back. */
  clear() {
    if (this.#isOpen) this.#end("");
    this.#input.value = "";
  }

  #typed() {
    clearTimeout(this.#timer);
    const text = this.#input.value;
    if (!this.#isOpen && text.trim() !== "") {
      this.#isOpen = true;
      this.#sent = "";
      this.#hear("", this.#utterance, false); // the onset: what the words will need can be made ready
    }
    if (this.#isOpen) this.#timer = setTimeout(() => this.#pause(), this.#settings.get("pause"));
  }

  #pause() {
    const text = this.#input.value.trim();
    if (text === "") return this.#end("");
    if (text === this.#sent) return;
    this.#sent = text;
    this.#hear(text, this.#utterance, false);
  }

  #end(text) {
    clearTimeout(this.#timer);
    this.#hear(text, this.#utterance, true);
    this.#isOpen = false;
    this.#count++;
    this.#input.value = "";
  }

  get #utterance() {
    return `${this.#prefix}-${this.#count}`;
  }
}

/** Whether a key press went to an input method: with 229, Safari says so of the one that commits. */
export function isByInputMethod({ isComposing, keyCode }) {
  return isComposing || keyCode === 229;
}
