// The list of images: thumbnails that are loaded when they come into view, so many at a time.

import { getRecords, pictureAddress, thumbnailAddress } from "/assets/server.js";

const PAGE = 120;
const SMALL_PX = 64;

const byId = (id) => document.getElementById(id);

/** Enlarged pixels of a small picture stay sharp. */
export function markSmall(image) {
  image.addEventListener("load", () => image.classList.toggle("small", image.naturalWidth <= SMALL_PX));
}

export class Gallery {
  /** `chosen(row)` is called when an image is clicked. */
  constructor(chosen) {
    this.chosen = chosen;
    this.entries = [];
    this.shown = 0;
    this.list = byId("gallery");
    this.more = byId("more");
    this.more.addEventListener("click", () => this.showMore());
    this.list.addEventListener("click", (event) => {
      const button = event.target.closest("button[data-row]");
      if (button) this.chosen(Number(button.dataset.row));
    });
    markSmall(byId("chosen-image"));
  }

  /** Show entries {row, text} and headings {heading}, with a title and a note. Returns when the first are there. */
  show(title, note, entries) {
    byId("list-heading").textContent = title;
    byId("list-note").textContent = note;
    this.entries = entries;
    this.shown = 0;
    this.list.replaceChildren();
    byId("chosen").hidden = true;
    return this.showMore();
  }

  async showMore() {
    const entries = this.entries.slice(this.shown, this.shown + PAGE);
    const all = this.entries;
    this.shown += entries.length;
    this.more.hidden = this.shown >= this.entries.length;
    const rows = entries.filter((entry) => entry.heading === undefined).map((entry) => entry.row);
    const records = new Map((await getRecords(rows)).map((record) => [record.row, record]));
    if (all !== this.entries) return; // another list has taken its place meanwhile
    for (const entry of entries) {
      this.list.append(entry.heading === undefined ? card(entry, records.get(entry.row)) : heading(entry.heading));
    }
  }

  /** Show one image large above the list, with all that is known of it. */
  async showChosen(row, extra = {}) {
    const [record] = await getRecords([row]);
    const image = byId("chosen-image");
    image.src = pictureAddress(row);
    image.alt = record.id;
    const values = { id: record.id, class: record.class, ...record.values, file: record.path, ...extra };
    showValues(values);
  }

  /** Show a file that has been searched for. Not every browser shows every kind of file. */
  showFile(file) {
    const image = byId("chosen-image");
    if (this.fileAddress) URL.revokeObjectURL(this.fileAddress);
    this.fileAddress = URL.createObjectURL(file);
    image.src = this.fileAddress;
    image.alt = file.name;
    showValues({ picture: file.name });
  }
}

function showValues(values) {
  const parts = [];
  for (const [name, value] of Object.entries(values)) {
    if (value === "" || value === undefined) continue;
    const term = document.createElement("dt");
    const text = document.createElement("dd");
    term.textContent = name;
    text.textContent = value;
    parts.push(term, text);
  }
  byId("chosen-values").replaceChildren(...parts);
  byId("chosen").hidden = false;
}

function heading(text) {
  const item = document.createElement("li");
  item.className = "group";
  item.textContent = text;
  return item;
}

function card(entry, record) {
  const item = document.createElement("li");
  const button = document.createElement("button");
  const image = document.createElement("img");
  const caption = document.createElement("span");
  button.type = "button";
  button.dataset.row = entry.row;
  button.title = record.id;
  image.loading = "lazy";
  image.alt = record.id;
  markSmall(image);
  image.src = thumbnailAddress(entry.row);
  caption.className = "caption";
  caption.textContent = [entry.text, record.class || record.id].filter(Boolean).join("  ");
  button.append(image, caption);
  item.append(button);
  return item;
}
