/**
 * `/v1/duplex` from the side of a page. What is said arrives once and in order, and a connection that is lost is made
 * again and goes on behind the last event that came. docs/protocol.md is its specification.
 */

const TOKEN_PROTOCOL = "openai-insecure-api-key.";
const FIRST_WAIT_MS = 100;
const LONGEST_WAIT_MS = 5000;
const LOADING_MS = 500;
const SILENCE_MS = 6000; // without a word of the server, though it was asked something: it is gone
const MOST_WAITING = 1000; // messages that are kept while there is no connection
const TAKEN_OVER = 4001;
const ROUTE_LENGTH = 8; // of the beginning of a session's name, which is not secret: a fleet routes connections by it

/**
 * One conversation with the server. `told` has functions for what happens:
 *   status(name, text)   connecting, open, lost, refused, full, taken, asleep, over; `text` is for people
 *   started(message)     a conversation has begun, or goes on, or (with `missed`) is now as the message says
 *   event(event)         in the order of their numbers, each once
 *   problem(code, text)  the server did not do what was asked
 *   voice(message)       what the server's voice does
 *   binary(buffer)       what is not JSON: sound
 */
export class Wire {
  #told;
  #token;
  #start; // () => {settings, history}
  #base; // address of the server
  #socket = null;
  #outgoing = []; // what the server has not said that it took, in order
  #numSent = 0; // of those, on this connection
  #id = 0;
  #number = 0; // of the last event
  #known = null; // the session that `#outgoing` is for
  #isOver = false;
  #isStarted = false; // on this connection
  #wait = FIRST_WAIT_MS;
  #timer = 0;
  #watch = 0;
  #heardFrom = 0; // when the server last said something
  #soundedAt = 0; // when bytes were last sent to it

  session = null;

  constructor({ start, token, session = null, told, base = document.baseURI }) {
    this.#told = told;
    this.#token = token;
    this.#start = start;
    this.#base = base;
    this.session = session;
  }

  get isOpen() {
    return this.#isStarted;
  }

  /** Whether what is sent now may arrive: a connection that is being closed takes nothing any more. */
  get #isReady() {
    return this.#isStarted && this.#socket.readyState === WebSocket.OPEN;
  }

  /** Connect, at once. */
  open(token = this.#token) {
    if (this.#isOver || this.#socket !== null) return;
    clearTimeout(this.#timer);
    this.#token = token;
    this.#told.status("connecting", "connecting");
    const url = new URL("v1/duplex", this.#base);
    url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
    url.searchParams.set("route", this.session?.slice(0, ROUTE_LENGTH) ?? randomRoute());
    try {
      this.#socket = new WebSocket(url, ["duologue", ...(token ? [TOKEN_PROTOCOL + token] : [])]);
    } catch {
      this.#told.status("refused", "a browser cannot send this token; use letters, digits, - . and _ in it");
      return;
    }
    this.#follow(this.#socket);
  }

  /** Say something that must arrive once. */
  say(message) {
    if (this.#isOver) return;
    const last = this.#outgoing.at(-1);
    const isNews = this.#outgoing.length > this.#numSent && last?.type === "heard" && message.type === "heard";
    if (isNews && last.answer === message.answer) {
      last.position = message.position; // it had not gone out yet
    } else if (this.#outgoing.length < MOST_WAITING) {
      this.#outgoing.push({ ...message, id: ++this.#id });
    }
    if (this.#socket === null && this.#timer === 0) this.open(); // it had fallen asleep
    this.#flush();
  }

  /** Send bytes, if there is a connection: sound that comes late is of no use. */
  sendBinary(bytes) {
    if (!this.#isReady) return;
    this.#socket.send(bytes);
    this.#soundedAt = performance.now();
  }

  /** The conversation is over; nobody else needs its place. */
  end() {
    if (this.#isStarted) this.#socket.send(JSON.stringify({ type: "end" }));
    this.#stop();
    this.#socket?.close();
  }

  /** Cut the connection, and make it again. */
  reconnect() {
    const socket = this.#socket;
    if (socket === null) return;
    socket.onmessage = socket.onclose = null; // nobody waits for a dead server to agree that it is closed
    socket.close();
    this.#closed({ code: 1006, reason: "" });
  }

  #follow(socket) {
    socket.binaryType = "arraybuffer";
    socket.onopen = () => {
      const goesOn = this.session !== null;
      const start = goesOn ? { session: this.session, after: this.#number } : this.#start();
      socket.send(JSON.stringify({ type: "start", ...start }));
    };
    socket.onmessage = ({ data }) => {
      this.#heardFrom = performance.now();
      if (typeof data === "string") this.#take(JSON.parse(data));
      else this.#told.binary?.(data);
    };
    socket.onclose = (closed) => this.#closed(closed);
    this.#heardFrom = performance.now();
    this.#watch = setInterval(() => this.#check(), SILENCE_MS / 3);
  }

  #take(message) {
    if (message.type === "started") return this.#begin(message);
    if (Number.isInteger(message.taken)) this.#forget(message.taken);
    if (message.type === "error") this.#fail(message);
    else if (message.type === "voice") this.#told.voice?.(message);
    else if (message.type === "closing") this.#isOver ||= message.reason !== "shutdown" && this.#ended(message.reason);
    else if (Number.isInteger(message.number)) {
      this.#number = message.number;
      this.#told.event(message);
    }
  }

  #begin(message) {
    if (this.#known === message.session) {
      this.#forget(message.taken);
    } else {
      // What waits was said to nobody yet, or to a conversation that is forgotten: it is counted anew.
      const waiting = this.#outgoing.filter((item) => item.type !== "heard");
      this.#id = message.taken;
      this.#outgoing = waiting.map((item) => ({ ...item, id: ++this.#id }));
    }
    this.#known = this.session = message.session;
    this.#isStarted = true;
    this.#wait = FIRST_WAIT_MS;
    this.#number = message.number;
    this.#numSent = 0;
    this.#told.started(message);
    this.#told.status("open", "connected");
    this.#flush();
  }

  #fail({ code, message }) {
    if (!this.#isStarted && this.session !== null && code === "bad_request") {
      this.session = null; // it is not known any more: another one goes on from the history
      this.#number = 0;
      this.#socket.close();
    } else if (!this.#isStarted && code === "full") {
      this.#told.status("full", `${message}; trying again`);
      this.#wait = LONGEST_WAIT_MS;
    } else if (!this.#isStarted) {
      this.#stop();
      this.#told.status("over", message);
    } else {
      this.#told.problem(code, message);
    }
  }

  #ended(reason) {
    this.#told.status("over", `the server ended the conversation: ${reason}`);
    this.#stop();
    return true;
  }

  #forget(taken) {
    while (this.#outgoing.length > 0 && this.#outgoing[0].id <= taken) {
      this.#outgoing.shift();
      this.#numSent = Math.max(0, this.#numSent - 1);
    }
  }

  #flush() {
    if (!this.#isReady) return;
    for (; this.#numSent < this.#outgoing.length; this.#numSent++) {
      this.#socket.send(JSON.stringify(this.#outgoing[this.#numSent]));
    }
  }

  /** What was sent may have gone nowhere: ask, and if nobody answers, connect again. */
  #check() {
    const silence = performance.now() - this.#heardFrom;
    const isWaiting = this.#outgoing.length > 0 || this.#soundedAt > this.#heardFrom;
    if (!isWaiting || !this.#isStarted || silence < SILENCE_MS / 3) return;
    if (silence > SILENCE_MS) this.reconnect();
    else this.#socket.send(JSON.stringify({ type: "ping" }));
  }

  async #closed({ code, reason }) {
    const wasStarted = this.#isStarted;
    clearInterval(this.#watch);
    this.#socket = null;
    this.#isStarted = false;
    this.#numSent = 0;
    if (this.#isOver) return;
    if (code === TAKEN_OVER) return this.#told.status("taken", "another page has taken the conversation over");
    if (code === 1001 && reason === "idle") return this.#told.status("asleep", "asleep; type to go on");
    if (!wasStarted && (await this.#isDenied())) return;
    if (wasStarted) this.#told.status("lost", "connection lost; connecting again");
    this.#timer = setTimeout(() => {
      this.#timer = 0;
      this.open();
    }, this.#wait * (0.75 + Math.random() / 2));
    this.#wait = Math.min(2 * this.#wait, LONGEST_WAIT_MS);
  }

  /** A page is not told why a WebSocket could not be opened; whether it was for the token, another address says. */
  async #isDenied() {
    try {
      const headers = this.#token ? { Authorization: `Bearer ${this.#token}` } : {};
      const answer = await fetch(new URL("v1/models", this.#base), { headers, cache: "no-store" });
      if (answer.status === 503) {
        this.#told.status("lost", "the model is being loaded");
        this.#wait = LOADING_MS;
      }
      if (answer.status !== 401) return false;
    } catch {
      return false; // it is not there at all
    }
    this.#told.status("refused", "the server needs a token");
    return true;
  }

  #stop() {
    this.#isOver = true;
    this.#isStarted = false;
    clearTimeout(this.#timer);
    clearInterval(this.#watch);
  }
}

function randomRoute() {
  return Array.from(crypto.getRandomValues(new Uint8Array(ROUTE_LENGTH / 2)), (n) => n.toString(16).padStart(2, "0")).join("");
}
