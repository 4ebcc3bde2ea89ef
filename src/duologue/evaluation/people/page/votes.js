/** The questions of a ballot. Each vote is sent at once, so that nothing is lost with the connection or the page. */

export class Votes {
  #form;
  #questions;
  #template;
  #send;

  /** `send(votes)` gets all votes so far. */
  constructor(form, questions, template, send) {
    this.#form = form;
    this.#questions = questions;
    this.#template = template;
    this.#send = send;
    form.addEventListener("change", () => this.#send(this.votes));
  }

  /** Ask `criteria`: name to question. `votes` are those that were cast before. */
  ask(criteria, votes) {
    const fields = Object.entries(criteria).map(([name, question]) => {
      const field = this.#template.content.firstElementChild.cloneNode(true);
      field.querySelector("legend").textContent = question;
      for (const radio of field.querySelectorAll("input")) {
        radio.name = name;
        radio.checked = votes[name] === radio.value;
      }
      return field;
    });
    this.#questions.replaceChildren(...fields);
  }

  /** Votes by criterion. */
  get votes() {
    const radios = [...this.#form.querySelectorAll("input:checked")];
    return Object.fromEntries(radios.map((radio) => [radio.name, radio.value]));
  }

  get isEnabled() {
    return this.#questions.querySelector("fieldset:enabled") !== null;
  }

  set isEnabled(isEnabled) {
    for (const field of this.#questions.children) field.disabled = !isEnabled;
  }
}
