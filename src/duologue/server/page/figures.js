/** How long things take, in a table: the newest, and the middle and the slow ones of those that there were. */

import { MEASURED } from "./latencies.js";
import { duration } from "./text.js";

export class Figures {
  #table;
  #key = "";

  constructor(table) {
    this.#table = table;
  }

  /** `columns` are [{title, conversation}]. */
  render(columns) {
    const found = columns.map(({ conversation }) => MEASURED.map(([name]) => conversation.latencies.of(name)));
    const key = JSON.stringify([columns.map(({ title }) => title), found]);
    if (key === this.#key) return;
    this.#key = key;
    const rows = MEASURED.map(([, title, meaning], index) => {
      const row = document.createElement("tr");
      const name = cell("th", title);
      name.scope = "row";
      name.title = meaning;
      row.append(name, ...found.map((column) => figure(column[index], columns.length > 1)));
      return row;
    });
    if (columns.length > 1) {
      const head = document.createElement("tr");
      head.append(cell("td", ""), ...columns.map(({ title }) => cell("th", title)));
      rows.unshift(head);
    }
    this.#table.dataset.columns = String(columns.length);
    this.#table.replaceChildren(...rows);
  }
}

function figure(found, isNarrow) {
  if (found === null) return cell("td", "–");
  const made = cell("td", duration(found.last));
  const small = document.createElement("small");
  const rest = isNarrow ? "" : `, p95 ${duration(found.p95)}, n ${found.count}`;
  small.textContent = found.count > 1 ? `p50 ${duration(found.p50)}${rest}` : "";
  made.append(small);
  return made;
}

function cell(tag, text) {
  const made = document.createElement(tag);
  made.textContent = text;
  return made;
}
