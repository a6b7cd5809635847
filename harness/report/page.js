"use strict";
// Sorts the table of pairs by the column whose head is clicked, and opens the pair that a link
// names. Cells carry their number in data-value; empty ones go last either way.
(function () {
  const table = document.getElementById("pairs");
  const body = table.tBodies[0];
  const heads = Array.from(table.tHead.rows[0].cells);
  heads.forEach(function (head, column) {
    for (const row of body.rows) {
      if (column > 0) row.cells[column].dataset.head = head.textContent.trim();
    }
    head.addEventListener("click", function () {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach(function (other) { other.setAttribute("aria-sort", "none"); });
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const rows = Array.from(body.rows);
      rows.sort(function (a, b) {
        const x = key(a.cells[column]), y = key(b.cells[column]);
        if (x === "" || y === "") return (x === "") - (y === "");
        const order = typeof x === "number" ? x - y : x.localeCompare(y);
        return down ? -order : order;
      });
      body.append(...rows);
    });
  });

  function key(cell) {
    if (!("value" in cell.dataset)) return cell.textContent.trim();
    return cell.dataset.value === "" ? "" : Number(cell.dataset.value);
  }

  function openTarget() {
    const target = document.getElementById(location.hash.slice(1));
    if (target && target.tagName === "DETAILS") {
      target.open = true;
      target.scrollIntoView();
    }
  }
  window.addEventListener("hashchange", openTarget);
  openTarget();
})();
