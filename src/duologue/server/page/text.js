/**
 * Positions: the server counts characters (code points), a page's strings count UTF-16 units. Beyond the first plane
 * the two differ.
 */

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

/** Number of words. */
export function numWords(text) {
  return (text.match(/\S+/g) ?? []).length;
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
