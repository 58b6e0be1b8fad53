"use strict";
// Each column of a table of class "sortable" gets a button that sorts by it; without script the table stays as it was printed.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const value = (row, place) => {
    const cell = row.cells[place];
    const text = (cell.dataset.sort ?? cell.firstChild?.textContent ?? "").trim().replace(/\u2212/g, "-");
    const figure = text.replace(/,/g, "").match(/^[+-]?\d+(\.\d+)?/);
    return figure ? Number(figure[0]) : text === "\u2013" ? null : text.toLowerCase();
  };
  const order = (a, b) => (a === null) - (b === null) || (typeof a === typeof b ? (a < b ? -1 : a > b ? 1 : 0) : typeof a === "number" ? -1 : 1);
  for (const [place, head] of [...table.tHead.rows[0].cells].entries()) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "descending";
      for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "ascending" : "descending");
      const rows = [...body.rows].map((row) => [value(row, place), row]);
      rows.sort(([a], [b]) => (a === null || b === null ? order(a, b) : down ? order(a, b) : order(b, a)));
      body.append(...rows.map(([, row]) => row));
    });
  }
}
