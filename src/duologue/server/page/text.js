/**
 * Positions: the server counts characters (code points), a page's strings count UTF-16 units. Beyond the first plane
 * the two differ. Words are those of the server's rule (`duologue.text.words`): white space separates them, and in
 * scripts that are written without it, a character is a word, and so is a run of Katakana.
 */

const SCRIPTS = ["Han", "Hiragana", "Bopomofo", "Yi", "Thai", "Lao", "Khmer", "Myanmar",
  "Tai_Le", "New_Tai_Lue", "Tai_Tham", "Ahom"]; // prettier-ignore
const KATAKANA = "[\\p{Script=Katakana}\u30fc\uff70]";
const UNSPACED = `(?!\\p{M})[${SCRIPTS.map((script) => `\\p{Script=${script}}`).join("")}\\p{Script=Katakana}\u30fc\uff70]`;
const OPENERS = "[\\p{Ps}\\p{Pi}]*";
const MARKS = "(?:(?![\\p{Ps}\\p{Pi}])\\p{P}\\p{M}*)*";
const WORD = new RegExp(
  `${OPENERS}(?:(?:${KATAKANA}\\p{M}*)+|${UNSPACED}\\p{M}*)${MARKS}|(?:(?!${OPENERS}${UNSPACED})\\S)+`, "gu",
); // prettier-ignore
const ANY_UNSPACED = new RegExp(UNSPACED, "u");
const BOTH_KATAKANA = new RegExp(`^${KATAKANA}{2}$`, "u");
const DENSE = 3; // a character of such a script takes as long to read as so many others

const PAIR = /[\ud800-\udbff][\udc00-\udfff]/g;

/** Where in `text` character number `count` begins, in units. */
export function units(text, count) {
  if (count <= 0) return 0;
  if (text.search(PAIR) < 0) return Math.min(count, text.length);
  let at = 0;
  for (; count > 0 && at < text.length; count--) at += text.codePointAt(at) > 0xffff ? 2 : 1;
  return at;
}

/** How many characters the first `count` units of `text` are. A character that is cut in two is left out. */
export function characters(text, count) {
  const before = text.slice(0, count);
  const pairs = before.match(PAIR);
  const isSplit = /[\ud800-\udbff]$/.test(before);
  return before.length - (pairs === null ? 0 : pairs.length) - (isSplit ? 1 : 0);
}

/** "1 word", "2 words". */
export function counted(count, noun) {
  return `${count} ${noun}${count === 1 ? "" : "s"}`;
}

/** The words of `text`: {word, isSpaced}, the latter where white space stands before it. */
export function wordsOf(text) {
  return [...text.matchAll(WORD)].map(({ 0: word, index }) => ({ word, isSpaced: /\s/.test(text[index - 1] ?? "") }));
}

/** Number of words. */
export function numWords(text) {
  return (text.match(WORD) ?? []).length;
}

/** Whether a word goes on from the character `before` to `after`; marks belong to words. */
export function isInWord(before, after) {
  if (/\s/.test(before + after)) return false;
  if (!ANY_UNSPACED.test(before + after) || BOTH_KATAKANA.test(before + after)) return true;
  return /^[\p{Ps}\p{Pi}]$/u.test(before) || /^(?![\p{Ps}\p{Pi}])[\p{M}\p{P}]$/u.test(after);
}

/** Whether a word goes on from the letter `before` to `after`; marks end it. */
export function isBetweenLetters(before, after) {
  if (/^\p{M}$/u.test(after)) return true;
  const areLetters = /^[\p{L}\p{N}\p{M}'’_]{2}$/u.test(before + after);
  return areLetters && (!ANY_UNSPACED.test(before + after) || BOTH_KATAKANA.test(before + after));
}

/** How long it takes to read `text`, in letters. */
export function numLetters(text) {
  if (!ANY_UNSPACED.test(text)) return text.length;
  return [...text].reduce((sum, each) => sum + (ANY_UNSPACED.test(each) ? DENSE : 1), 0);
}

/** Milliseconds as a person reads them: "47 ms", "1.24 s". */
export function duration(ms) {
  return ms < 999.5 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(2)} s`;
}

/** Seconds as a clock: "1:05.2". */
export function clock(seconds) {
  const tenths = Math.round(Math.max(0, seconds) * 10);
  const minutes = Math.floor(tenths / 600);
  return `${minutes}:${((tenths % 600) / 10).toFixed(1).padStart(4, "0")}`;
}
