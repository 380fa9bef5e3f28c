// Connects the map, the list, the searches and the labels.

import { categoryColors, gradient, numberColors, plainColors } from "/assets/colors.js";
import { Gallery, markSmall } from "/assets/gallery.js";
import { Labels } from "/assets/labels.js";
import { PointMap } from "/assets/map.js";
import { getFloats, getIntegers, getJson, getRecords, postFile, thumbnailAddress } from "/assets/server.js";
import { setUpTheme } from "/assets/theme.js";

const HOVER_MILLISECONDS = 60;

const byId = (id) => document.getElementById(id);
const counted = (count, noun) => `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;
const similarityText = (similarity) => similarity.toFixed(3);

let about;
let codes = null; // of the categories that are shown, by row
let currentRows = [];
const labels = new Labels();
const gallery = new Gallery(showNeighbors);
const map = new PointMap(byId("map"), { hovered, left, clicked: showNeighbors, selected: showSelection });

function say(text) {
  byId("status").textContent = text;
}

/** Run an action that waits for the server; say what it is doing, and what went wrong. */
async function doing(text, action) {
  say(text);
  try {
    await action();
    say("");
  } catch (error) {
    say(error.message);
  }
}

// The list

async function showList(title, note, entries, rows) {
  currentRows = rows;
  byId("label-form").hidden = rows.length === 0;
  await map.highlight(rows.length ? rows : null);
  await gallery.show(title, note, entries);
}

function showSelection(rows) {
  const entries = rows.map((row) => ({ row, text: "" }));
  return doing("", () => showList(`${counted(rows.length, "image")} in the lasso`, "", entries, rows));
}

function showCategory(item) {
  const rows = [];
  codes.forEach((code, row) => {
    if (code === item.code) rows.push(row);
  });
  const entries = rows.map((row) => ({ row, text: "" }));
  const title = `${item.name}: ${counted(rows.length, "image")}`;
  return doing("", () => showList(title, "", entries, rows));
}

function ranked({ rows, similarities }) {
  return rows.map((row, rank) => ({ row, text: similarityText(similarities[rank]) }));
}

function showNeighbors(row) {
  return doing("searching", async () => {
    const found = await getJson(`/api/neighbors/${row}`);
    await showList("Nearest images", "with their cosine similarities", ranked(found), [row, ...found.rows]);
    await gallery.showChosen(row, { label: labels.labelOf.get(row) });
    byId("list").scrollIntoView({ block: "nearest" });
  });
}

function searchPicture(file) {
  return doing(`searching for ${file.name}`, async () => {
    const found = await postFile("/api/search", file);
    await showList(`Nearest to ${file.name}`, "with their cosine similarities", ranked(found), found.rows);
    gallery.showFile(file);
  });
}

function showDuplicates() {
  return doing("comparing all pairs of images", async () => {
    const { groups, count, threshold, reason } = await getJson("/api/duplicates");
    const entries = [];
    groups.forEach((group, number) => {
      entries.push({ heading: `Group ${number + 1}: ${counted(group.rows.length, "image")}` }, ...ranked(group));
    });
    const note = `similarity ${threshold.toPrecision(4)} and above: ${reason}`;
    const rows = groups.flatMap((group) => group.rows);
    await showList(`${counted(count, "group")} of near duplicates`, note, entries, rows);
  });
}

function find(text) {
  return doing("", async () => {
    const { rows, count } = await getJson(`/api/find?text=${encodeURIComponent(text)}`);
    const note = count > rows.length ? `the first ${rows.length} are shown` : "";
    const entries = rows.map((row) => ({ row, text: "" }));
    await showList(`${counted(count, "image")} with “${text}”`, note, entries, rows);
  });
}

// Colors and layouts

async function colorsOf(number) {
  codes = null;
  const column = about.columns[number];
  if (!column) return plainColors();
  if (column.kind === "number") return numberColors(await getFloats(`/api/column/${number}`));
  codes = await getIntegers(`/api/column/${number}`);
  return categoryColors(column, codes);
}

function showLegend(number, colors) {
  const column = about.columns[number];
  byId("legend-heading").textContent = column ? `Legend: ${column.name}` : "Legend";
  byId("legend-note").textContent = column ? column.note : "";
  byId("legend-note").hidden = !column || !column.note;
  byId("scale").hidden = colors.range === null;
  if (colors.range) {
    byId("scale-low").textContent = Number(colors.range[0].toPrecision(4));
    byId("scale-high").textContent = Number(colors.range[1].toPrecision(4));
  }
  byId("legend-items").replaceChildren(...colors.items.map(legendItem));
}

function legendItem(item) {
  const entry = document.createElement("li");
  const button = document.createElement("button");
  const parts = ["swatch", "name", "count"].map((name) => {
    const part = document.createElement("span");
    part.className = name;
    return part;
  });
  parts[0].style.background = item.color;
  parts[1].textContent = item.name;
  parts[2].textContent = item.count.toLocaleString("en");
  button.type = "button";
  button.title = `list all images of ${item.name}`;
  button.append(...parts);
  button.addEventListener("click", () => showCategory(item));
  entry.append(button);
  return entry;
}

function recolor() {
  const number = Number(byId("color").value);
  return doing(`computing ${byId("color").selectedOptions[0].textContent}`, async () => {
    const colors = await colorsOf(number);
    showLegend(number, colors);
    await map.color(colors.marker);
  });
}

function relayout() {
  const layout = byId("layout").value;
  return doing(`computing ${about.layouts[layout]}`, async () => {
    await map.draw(await getFloats(`/api/positions/${layout}`), map.marker);
  });
}

// The card beside the pointer

let hoverTimer;

function hovered(row, event) {
  clearTimeout(hoverTimer);
  const stage = byId("map").getBoundingClientRect();
  const [x, y] = [event.clientX - stage.left, event.clientY - stage.top];
  hoverTimer = setTimeout(() => showCard(row, x, y, stage), HOVER_MILLISECONDS);
}

async function showCard(row, x, y, stage) {
  const card = byId("card");
  byId("card-image").src = thumbnailAddress(row);
  byId("card-text").textContent = "";
  card.style.transform = `translate(${x < stage.width / 2 ? x + 14 : x - 174}px, ${y < stage.height / 2 ? y + 14 : y - 194}px)`;
  card.hidden = false;
  try {
    const [record] = await getRecords([row]);
    const values = Object.entries(record.values).filter(([, value]) => value).map(([name, value]) => `${name}: ${value}`);
    byId("card-text").textContent = [record.id, ...values].join("\n");
  } catch { /* a card without a text */ }
}

function left() {
  clearTimeout(hoverTimer);
  byId("card").hidden = true;
}

// Labels

function showLabels() {
  byId("label-count").textContent = labels.count ? `${counted(labels.count, "image")} labeled` : "No labels yet";
  byId("export").disabled = labels.count === 0;
  const options = labels.names.map((name) => {
    const option = document.createElement("option");
    option.value = name;
    return option;
  });
  byId("known-labels").replaceChildren(...options);
}

function setLabel() {
  labels.set(currentRows, byId("label-text").value.trim());
  showLabels();
}

// Controls

function fill(select, options) {
  for (const [value, text] of options) {
    const option = document.createElement("option");
    option.value = value;
    option.textContent = text;
    select.append(option);
  }
}

function setMode(mode) {
  byId("mode-pan").setAttribute("aria-pressed", String(mode === "pan"));
  byId("mode-lasso").setAttribute("aria-pressed", String(mode === "lasso"));
  return map.setMode(mode);
}

function setUpDropping() {
  const hasFiles = (event) => [...event.dataTransfer.types].includes("Files");
  addEventListener("dragover", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    byId("drop").hidden = false;
  });
  addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) byId("drop").hidden = true;
  });
  addEventListener("drop", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    byId("drop").hidden = true;
    if (event.dataTransfer.files.length) searchPicture(event.dataTransfer.files[0]);
  });
}

function setUpControls() {
  fill(byId("layout"), Object.entries(about.layouts));
  byId("layout").value = about.layout;
  fill(byId("color"), [...about.columns.map((column, number) => [number, column.name]), [-1, "nothing"]]);
  byId("layout").addEventListener("change", relayout);
  byId("color").addEventListener("change", recolor);
  byId("mode-pan").addEventListener("click", () => setMode("pan"));
  byId("mode-lasso").addEventListener("click", () => setMode("lasso"));
  byId("map-all").addEventListener("click", () => map.showAll());
  byId("duplicates").addEventListener("click", showDuplicates);
  byId("picture").addEventListener("change", (event) => {
    if (event.target.files.length) searchPicture(event.target.files[0]);
  });
  byId("find").addEventListener("submit", (event) => {
    event.preventDefault();
    const text = byId("find-text").value.trim();
    if (text) find(text);
  });
  byId("label-form").addEventListener("submit", (event) => {
    event.preventDefault();
    setLabel();
  });
  byId("export").addEventListener("click", () => doing("", () => labels.download()));
  markSmall(byId("card-image"));
  byId("gradient").style.background = gradient;
  setUpDropping();
}

async function start() {
  setUpTheme();
  about = await getJson("/api/about");
  document.title = `${about.title} – reptk explore`;
  byId("title").textContent = about.title;
  byId("notes").textContent = about.notes.join("; ");
  setUpControls();
  say(`computing ${about.layouts[about.layout]}`);
  const positions = await getFloats(`/api/positions/${about.layout}`);
  const number = about.columns.findIndex((column) => !column.slow); // -1, which is "nothing", if there is none
  byId("color").value = number;
  const colors = await colorsOf(number);
  showLegend(number, colors);
  await map.draw(positions, colors.marker);
  say("");
  document.documentElement.dataset.state = "ready";
}

start().catch((error) => say(error.message));
