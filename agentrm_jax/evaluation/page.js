// The switch between the light and the dark theme, and tables that are sorted by a column.
"use strict";

(() => {
  const root = document.documentElement;
  const stored = () => {
    try { return localStorage.getItem("agentrm-theme"); } catch { return null; }
  };
  const dark = () => root.dataset.theme
    ? root.dataset.theme === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches;
  if (["light", "dark"].includes(stored())) root.dataset.theme = stored();

  const button = document.getElementById("theme");
  if (button) {
    const label = () => { button.textContent = dark() ? "Light theme" : "Dark theme"; };
    button.hidden = false;
    label();
    button.addEventListener("click", () => {
      root.dataset.theme = dark() ? "light" : "dark";
      try { localStorage.setItem("agentrm-theme", root.dataset.theme); } catch { /* a file's page */ }
      label();
    });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", label);
  }

  // A cell's number stands in data-value; a cell without one comes last in both directions.
  const key = (row, column) => {
    const cell = row.cells[column];
    const value = cell?.dataset.value ?? cell?.textContent.trim();
    const number = Number(value);
    return value === "" || value === undefined || value === "–" ? null
      : Number.isNaN(number) ? value : number;
  };
  const compare = (a, b) => typeof a === "number" && typeof b === "number" ? a - b
    : String(a).localeCompare(String(b), undefined, { numeric: true });

  const sort = (table, head, column) => {
    const first = head.getAttribute("aria-sort") === "descending" ? 1 : -1;
    const sign = column === 0 ? (head.getAttribute("aria-sort") === "ascending" ? -1 : 1) : first;
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
    for (const body of table.tBodies) { // a group of rows stays together
      const rows = [...body.rows].filter((row) => !row.classList.contains("group"));
      const keys = new Map(rows.map((row) => [row, key(row, column)]));
      rows.sort((a, b) => {
        const [x, y] = [keys.get(a), keys.get(b)];
        return x === null || y === null ? (x === null) - (y === null) : sign * compare(x, y);
      });
      body.append(...rows);
    }
  };
  for (const table of document.querySelectorAll("table.sortable")) {
    [...table.tHead.rows[0].cells].forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      button.addEventListener("click", () => sort(table, head, column));
      head.append(button);
    });
  }
})();
