// Headings of tables become buttons that sort the rows: numbers by value, empty cells last.
const read = cell => {
  const text = cell.textContent.trim();
  const number = parseFloat(text.replace(/[,\s]/g, "").replace("\u2212", "-"));
  return /^[\d.+\u2212-]/.test(text) && !Number.isNaN(number) ? number : text;
};
const compare = (a, b) => {
  if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
  return typeof a === "number" ? a - b : a.localeCompare(b);
};
const isEmpty = value => value === "" || value === "\u2013";
for (const heading of document.querySelectorAll("thead th")) {
  const body = heading.closest("table").tBodies[0];
  const original = [...body.rows];
  if (!heading.textContent || original.length < 3) continue;
  const button = document.createElement("button");
  button.append(...heading.childNodes);
  heading.append(button);
  button.onclick = () => {
    const before = heading.ariaSort;
    for (const other of heading.parentElement.cells) other.removeAttribute("aria-sort");
    if (before === "ascending") return body.append(...original);
    const sign = before === "descending" ? 1 : -1;
    heading.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
    const keyed = original.map(row => [read(row.cells[heading.cellIndex]), row]);
    keyed.sort(([a], [b]) => isEmpty(a) - isEmpty(b) || sign * compare(a, b));
    body.append(...keyed.map(([, row]) => row));
  };
}
