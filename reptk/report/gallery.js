"use strict";

// Images are ticked, and the ticked ones are saved as a table.

function setUpTicks() {
  const boxes = [...document.querySelectorAll(".tick input")];
  const bar = document.getElementById("ticked");
  const count = bar.querySelector("output");
  const save = document.getElementById("export");
  const columns = ["group", "id", "label", "similarity", "file"];
  const ticked = () => boxes.filter((box) => box.checked);

  const update = () => {
    const number = ticked().length;
    count.textContent = `${number.toLocaleString("en")} ticked`;
    save.disabled = number === 0;
  };

  const tick = (isTicked) => {
    for (const box of boxes) box.checked = isTicked(box);
    update();
  };

  const fileName = (box) => {
    try { return decodeURIComponent(box.dataset.link); } catch { return box.dataset.link; } // not every name is UTF-8
  };

  const cells = (box) => [
    box.closest("[data-group]").dataset.group,
    box.dataset.id,
    box.dataset.label,
    box.dataset.similarity,
    fileName(box),
  ];

  // A spreadsheet runs text that begins so, even if it is the name of a file.
  const withoutFormula = (cell) => (/^[=+\-@\t\r]/.test(cell) && Number.isNaN(Number(cell)) ? `'${cell}` : cell);
  const quoted = (cell) => (/[",\r\n]/.test(cell) ? `"${cell.replaceAll('"', '""')}"` : cell);
  const line = (row) => row.map((cell) => quoted(withoutFormula(cell))).join(",");

  const table = () => [columns, ...ticked().map(cells)].map((row) => `${line(row)}\n`).join("");

  save.addEventListener("click", () => {
    const address = URL.createObjectURL(new Blob([table()], { type: "text/csv" }));
    Object.assign(document.createElement("a"), { href: address, download: "ticked.csv" }).click();
    setTimeout(() => URL.revokeObjectURL(address), 10_000);
  });
  document.getElementById("untick").addEventListener("click", () => tick(() => false));
  const others = document.getElementById("tick-others");
  others?.addEventListener("click", () => tick((box) => !("first" in box.dataset)));
  for (const box of boxes) {
    box.closest(".tick").hidden = false;
    box.addEventListener("change", update);
  }
  bar.hidden = boxes.length === 0;
  tick(() => false); // a reloaded page may have kept ticks
}

setUpTicks();
