/**
 * A conversation as a rater sees it: who said what, and nothing of what a system thought. What an assistant has not been
 * heard to say is not there.
 */

/** Show `conversation` (see the server's page) in the list `box`; only what changed is made again. */
export function show(box, conversation) {
  const isAtEnd = box.scrollHeight - box.scrollTop - box.clientHeight < 40;
  const rows = conversation.entries.map(row).filter(({ text }) => text.trim() !== "");
  while (box.children.length > rows.length) box.lastElementChild.remove();
  for (const [index, { side, text }] of rows.entries()) {
    const item = box.children[index] ?? box.appendChild(document.createElement("li"));
    if (item.className !== side) item.className = side;
    if (item.textContent !== text) item.textContent = text;
  }
  if (isAtEnd) box.scrollTop = box.scrollHeight;
}

function row(entry) {
  if (entry.kind === "user") return { side: "user", text: entry.text };
  if (entry.kind !== "assistant") return { side: "", text: "" };
  const { answer, start, end } = entry;
  return { side: "assistant", text: answer.text.slice(start, Math.min(end ?? answer.heard, answer.heard)).trim() };
}
