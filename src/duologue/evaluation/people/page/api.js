/** What the page asks its server. A connection that is lost is tried again until it is there. */

const WAIT_MS = 1000;

export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export class Api {
  token;
  #told;

  /** `told(text)` is what is to be shown of the connection; empty when there is nothing to say. */
  constructor(token, told) {
    this.token = token;
    this.#told = told;
  }

  /** Throws `Refused`. */
  async ask(path, body = undefined) {
    const headers = this.token ? { Authorization: `Bearer ${this.token}` } : {};
    const more = body === undefined ? {} : { method: "POST", body: JSON.stringify(body) };
    for (;;) {
      const response = await this.#try(path, { headers, cache: "no-store", ...more });
      if (response !== null) {
        this.#told("");
        const answer = await response.json().catch(() => ({}));
        if (response.ok) return answer;
        throw new Refused(response.status, answer.error?.message ?? `the server says ${response.status}`);
      }
      this.#told("The connection was lost. Your answers are kept here and sent when it is back.");
      await new Promise((resolve) => setTimeout(resolve, WAIT_MS));
    }
  }

  /** The response, or null if there is none, or another try may get a better one. */
  async #try(path, options) {
    try {
      const response = await fetch(new URL(path, document.baseURI), options);
      return response.status === 503 ? null : response;
    } catch {
      return null;
    }
  }
}
