/** Tells a screen reader what happens: whole sentences as they are heard, and what became of what one said. */

const MOST_WAITING = 400; // characters: an answer without a full stop is told in pieces

export class Announcer {
  #region;
  #answer = null;
  #told = 0; // of the text of the answer

  /** `region` is an element that is aria-live. */
  constructor(region) {
    this.#region = region;
  }

  /** `text`, now. */
  tell(text) {
    if (text === "") return;
    const line = document.createElement("p");
    line.textContent = text;
    this.#region.append(line);
    while (this.#region.childElementCount > 6) this.#region.firstElementChild.remove();
  }

  /** `conversation` has just taken `event`. */
  take(event, conversation) {
    if (event.type === "heard") this.#hear(conversation.running, false);
    else if (event.type === "committed") this.#hear(this.#answer, true);
    else if (event.type === "suspended") {
      this.#hear(this.#answer, true);
      this.tell("The assistant was interrupted.");
    } else if (event.type === "dropped" && event.text) {
      this.tell({ ignore: "Your words were ignored.", patience: "Your words were dropped: never finished.",
        deaf: "Your words were not heard: it was talking." }[event.reason] ?? ""); // prettier-ignore
    } else if (event.type === "resumed") this.tell("The assistant goes on.");
    else if (event.type === "refused") this.tell(`${event.what}: ${event.reason}`);
  }

  #hear(answer, isAll) {
    if (answer === null) return;
    if (answer !== this.#answer) {
      this.#answer = answer;
      this.#told = 0;
    }
    const waiting = answer.text.slice(this.#told, answer.heard);
    const ends = [...waiting.matchAll(/[.!?…:]["')\]]?\s|[。！？：]["'”’）」』]*|\n/g)];
    let length = ends.length > 0 ? ends.at(-1).index + ends.at(-1)[0].length : 0;
    if (isAll || (length === 0 && waiting.length > MOST_WAITING)) length = waiting.length;
    if (waiting.slice(0, length).trim() !== "") this.tell(waiting.slice(0, length).trim());
    this.#told += length;
  }
}
