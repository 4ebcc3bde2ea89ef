/** How long things took, in milliseconds, from the times of events: the server's clock, without the network. */

const MOST = 200; // of each that are kept

/** What is measured, in the order in which a page shows it: name, heading and what it means. */
export const MEASURED = [
  ["decision", "words → decision", "from the newest words to the state known"],
  ["firstWord", "decision → first word", "from the decision to answer to the first word, waits of the policy included"],
  ["silence", "speech onset → silence", "from the first sign of your speech to the end of the assistant's"],
  ["reply", "last word → first word", "from your last words to the first word of the answer to them"],
];

/** Takes what a `Conversation` finds out. */
export class Latencies {
  #found = Object.fromEntries(MEASURED.map(([name]) => [name, []]));

  /** {last, p50, p95, count} of one of `MEASURED`; null if there is none yet. */
  of(name) {
    const all = this.#found[name];
    if (all.length === 0) return null;
    const sorted = [...all].sort((a, b) => a - b);
    const at = (share) => sorted[Math.min(sorted.length - 1, Math.ceil(share * sorted.length) - 1)];
    return { last: all.at(-1), p50: at(0.5), p95: at(0.95), count: all.length };
  }

  decided(decision) {
    this.#add("decision", decision.ms);
  }

  received(line, at) {
    line.wordsAt = at;
  }

  promoted(answer, lines, decision) {
    const isDecided = decision?.state === "process" && decision.at <= answer.promotedAt;
    answer.decidedAt = isDecided && lines.some((line) => line.decision === decision) ? decision.at : null;
    answer.wordsAt = lines.length > 0 ? Math.max(...lines.map((line) => line.wordsAt)) : null;
  }

  said(answer, at) {
    if (answer.isTimed) return;
    answer.isTimed = true;
    if (answer.decidedAt != null) this.#add("firstWord", (at - answer.decidedAt) * 1000);
    if (answer.wordsAt != null) this.#add("reply", (at - answer.wordsAt) * 1000);
  }

  /** These lines ended the assistant's speech. */
  suspended(lines, at) {
    const onsets = lines.map((line) => line.onset).filter((onset) => onset !== null);
    if (onsets.length > 0) this.#add("silence", (at - Math.min(...onsets)) * 1000);
  }

  #add(name, ms) {
    const all = this.#found[name];
    all.push(ms);
    if (all.length > MOST) all.shift();
  }
}
