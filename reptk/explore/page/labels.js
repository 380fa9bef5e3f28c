// Labels that are typed for images: in the page alone, until they are exported.

import { getRecords } from "/assets/server.js";

// As a spreadsheet takes text for a formula; see reptk/core/csv_cells.py.
const FORMULA_STARTS = ["=", "+", "-", "@", "\t", "\r"];

function cell(value) {
  let text = String(value);
  if (FORMULA_STARTS.includes(text[0]) && Number.isNaN(Number(text))) text = `'${text}`;
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

export class Labels {
  constructor() {
    this.labelOf = new Map();
    this.isExported = true;
    addEventListener("beforeunload", (event) => {
      if (!this.isExported) event.preventDefault(); // the browser asks before the labels are lost
    });
  }

  get count() {
    return this.labelOf.size;
  }

  get names() {
    return [...new Set(this.labelOf.values())].sort();
  }

  /** Set the label of rows; an empty one removes theirs. */
  set(rows, label) {
    for (const row of rows) {
      if (label) this.labelOf.set(row, label);
      else this.labelOf.delete(row);
    }
    this.isExported = this.labelOf.size === 0;
  }

  /** Return the labels as CSV, in the order of rows. */
  async csv() {
    const rows = [...this.labelOf.keys()].sort((a, b) => a - b);
    const lines = [["row", "id", "path", "class", "label"]];
    for (const record of await getRecords(rows)) {
      lines.push([record.row, record.id, record.path, record.class, this.labelOf.get(record.row)]);
    }
    return lines.map((line) => line.map(cell).join(",")).join("\r\n") + "\r\n";
  }

  /** Let the browser download them. */
  async download() {
    const address = URL.createObjectURL(new Blob([await this.csv()], { type: "text/csv" }));
    const link = document.createElement("a");
    link.href = address;
    link.download = "labels.csv";
    link.click();
    setTimeout(() => URL.revokeObjectURL(address), 10000);
    this.isExported = true;
  }
}
