
// The map of the embedding: points on a canvas, thumbnails from an atlas, a legend that shows and hides classes.
// "Group" is what has one color and one line in the legend: a class, or right and wrong.

function setUpMap() {
  const canvas = document.getElementById("map");
  if (!canvas) return;
  const pen = canvas.getContext("2d");
  const card = document.getElementById("map-card");
  const announcement = document.getElementById("map-announcement");
  const choice = (name, fallback) => document.getElementById(`map-${name}`)?.value ?? fallback;
  const center = 65535 / 2; // coordinates are 16-bit integers
  const hiddenGroups = new Set();
  const runs = page.maps.map(unpack);
  const atlases = Object.fromEntries(Object.entries(page.atlases).map(([name, atlas]) => [name, loadAtlas(atlas)]));

  let run = runs[0];
  let layout = Object.keys(run.layouts)[0];
  let coloring = run.labels ? "label" : "none";
  let groups, colors;
  let scale = 1, shiftX = 0, shiftY = 0;
  let width = 0, height = 0, pixelRatio = 1, fit = 1;
  let current = -1, highlighted = -1, isFrameRequested = false;

  function unpack(packed) {
    const bytes = (text) => Uint8Array.from(atob(text), (character) => character.charCodeAt(0)).buffer;
    const integers = (text) => (text === null ? null : new Int32Array(bytes(text)));
    const layouts = {}, spans = {};
    for (const [kind, text] of Object.entries(packed.layouts)) {
      layouts[kind] = new Uint16Array(bytes(text));
      spans[kind] = [span(layouts[kind], 0), span(layouts[kind], 1)];
    }
    return { ...packed, layouts, spans, index: integers(packed.index), labels: integers(packed.labels),
             predicted: integers(packed.predicted), confidence: new Uint8Array(bytes(packed.confidence)) };
  }

  function span(coordinates, axis) { // how much room the points need on both sides of the center
    let distance = 0.5;
    for (let index = axis; index < coordinates.length; index += 2) {
      distance = Math.max(distance, Math.abs(coordinates[index] - center));
    }
    return 2 * distance;
  }

  function loadAtlas(atlas) {
    if (!atlas) return null;
    const image = new Image();
    image.addEventListener("load", () => { draw(); });
    image.src = atlas.uri;
    return { ...atlas, image, missing: new Set(atlas.missing) };
  }

  // Groups

  const isCorrect = (point) => run.labels[point] === run.predicted[point];

  function groupOf(point) {
    if (coloring === "none") return 0;
    if (coloring === "right") return run.labels[point] < 0 ? 2 : isCorrect(point) ? 0 : 1;
    const label = run[coloring === "label" ? "labels" : "predicted"][point];
    return label < 0 ? run.classes.length : label;
  }

  function groupNames() {
    if (coloring === "none") return ["query"];
    return coloring === "right" ? ["right", "wrong", "no label"] : [...run.classes, "no label"];
  }

  function palette(count, isDark) {
    const style = getComputedStyle(document.documentElement);
    const gray = style.getPropertyValue("--quiet");
    if (coloring === "none") return [style.getPropertyValue("--accent")];
    if (coloring === "right") return [style.getPropertyValue("--accent"), style.getPropertyValue("--wrong"), gray];
    const fewColors = isDark
      ? ["#6fb7ff", "#ffb45e", "#63d69b", "#ff8b82", "#b9a2ff", "#d8a97c", "#ff9fd6", "#c9d162", "#5fd6dd", "#b4b8bf"]
      : ["#2f6db5", "#d9770f", "#2a8f57", "#c8403a", "#7a57c2", "#84563a", "#c64d94", "#858a12", "#1791a0", "#6c7178"];
    const areCoprime = (a, b) => (b ? areCoprime(b, a % b) : a === 1);
    let stride = Math.max(1, Math.round((count - 1) * 0.382));
    while (!areCoprime(stride, count - 1)) stride += 1;
    return Array.from({ length: count }, (_, index) => {
      if (index === count - 1) return gray;
      if (count - 1 <= fewColors.length) return fewColors[index];
      const hueSlot = (index * stride) % (count - 1); // neighbors in the list are far apart in hue
      const lightness = (isDark ? [66, 80, 56] : [40, 56, 28])[hueSlot % 3];
      return `hsl(${(hueSlot * 360) / (count - 1)} ${isDark ? 68 : 62}% ${lightness}%)`;
    });
  }

  function assignGroups() {
    groups = Uint32Array.from({ length: run.count }, (_, point) => groupOf(point));
    const isDark = getComputedStyle(document.documentElement).colorScheme.includes("dark");
    colors = palette(groupNames().length, isDark);
  }

  // Legend

  const legend = document.getElementById("legend-items");
  const search = document.getElementById("legend-find");

  function buildLegend() {
    const counts = new Uint32Array(groupNames().length);
    for (const group of groups) counts[group] += 1;
    legend.replaceChildren(...groupNames().flatMap((name, group) => (counts[group] ? [legendItem(name, group, counts[group])] : [])));
    search.hidden = legend.children.length <= 14;
    search.value = "";
    document.getElementById("legend").hidden = coloring === "none";
  }

  function legendItem(name, group, count) {
    const row = document.createElement("li");
    const label = document.createElement("label");
    const box = Object.assign(document.createElement("input"), { type: "checkbox", checked: !hiddenGroups.has(group) });
    const text = Object.assign(document.createElement("span"), { textContent: name, title: name });
    box.addEventListener("change", () => {
      if (box.checked) hiddenGroups.delete(group); else hiddenGroups.add(group);
      draw();
    });
    row.addEventListener("pointerenter", () => { highlighted = group; draw(); });
    row.addEventListener("pointerleave", () => { highlighted = -1; draw(); });
    label.append(box, swatch(group), text, Object.assign(document.createElement("small"), { textContent: count.toLocaleString("en") }));
    row.append(label);
    return row;
  }

  function swatch(group) {
    const swatchCanvas = Object.assign(document.createElement("canvas"), { width: 28, height: 28 });
    const context = swatchCanvas.getContext("2d");
    context.scale(2, 2);
    context.fillStyle = context.strokeStyle = colors[group];
    context.beginPath();
    addMarker(context, 7, 7, 4.5, isCross(group));
    context.fill();
    context.stroke();
    return swatchCanvas;
  }

  function checkAll(isChecked) {
    const boxes = selectAll("li:not([hidden]) input", legend);
    for (const box of boxes) if (box.checked !== isChecked) box.click();
  }

  // Drawing

  const insetPx = 26;
  const fitScale = () => Math.min((width - 2 * insetPx) / run.spans[layout][0], (height - 2 * insetPx) / run.spans[layout][1]);
  const xOf = (point) => (run.layouts[layout][2 * point] - center) * fit * scale + width / 2 + shiftX;
  const yOf = (point) => (center - run.layouts[layout][2 * point + 1]) * fit * scale + height / 2 + shiftY;
  const isShown = (point) => !hiddenGroups.has(groups[point]);

  function draw() {
    if (isFrameRequested) return;
    isFrameRequested = true;
    requestAnimationFrame(() => { isFrameRequested = false; paint(); });
  }

  function paint() {
    pen.setTransform(pixelRatio, 0, 0, pixelRatio, 0, 0);
    pen.clearRect(0, 0, width, height);
    const radius = Math.min(Math.max((run.count > 4000 ? 1.6 : 2.9) * scale ** 0.35, 1.5), 7);
    const visible = [];
    for (let point = 0; point < run.count; point += 1) {
      const x = xOf(point), y = yOf(point);
      if (x > -40 && y > -40 && x < width + 40 && y < height + 40 && isShown(point)) visible.push(point);
    }
    const showThumbnails = visible.length <= 220 && scale > 1.5 && atlases[run.atlas]?.image.complete;
    if (showThumbnails) for (const point of visible) drawThumbnail(point);
    else drawMarkers(visible, radius);
    if (current >= 0) drawRing(current, radius);
  }

  const numLayers = 16;

  function drawMarkers(visible, radius) { // in layers of all groups, so that none lies over all others
    const layers = Array.from({ length: numLayers + 1 }, () => new Map());
    for (const point of visible) {
      const group = groups[point];
      const layer = layers[group === highlighted ? numLayers : (point * 7919) % numLayers];
      if (!layer.has(group)) layer.set(group, []);
      layer.get(group).push(point);
    }
    for (const [group, points] of layers.flatMap((layer) => [...layer])) {
      pen.globalAlpha = highlighted >= 0 && group !== highlighted ? 0.12 : run.count > 4000 ? 0.72 : 0.85;
      pen.fillStyle = pen.strokeStyle = colors[group];
      pen.lineWidth = 1.4;
      pen.beginPath();
      for (const point of points) addMarker(pen, xOf(point), yOf(point), radius, isCross(group));
      if (isCross(group)) pen.stroke(); else pen.fill();
    }
    pen.globalAlpha = 1;
  }

  const isCross = (group) => coloring === "right" && group === 1; // wrong answers, so that nobody depends on the color

  function addMarker(context, x, y, radius, cross) {
    if (cross) {
      context.moveTo(x - radius, y - radius); context.lineTo(x + radius, y + radius);
      context.moveTo(x - radius, y + radius); context.lineTo(x + radius, y - radius);
    } else {
      context.moveTo(x + radius, y);
      context.arc(x, y, radius, 0, 2 * Math.PI);
    }
  }

  function drawThumbnail(point) {
    const size = 44;
    const x = xOf(point) - size / 2, y = yOf(point) - size / 2;
    pen.globalAlpha = highlighted >= 0 && groups[point] !== highlighted ? 0.25 : 1;
    const box = drawImage(pen, point, x, y, size);
    pen.strokeStyle = colors[groups[point]];
    pen.lineWidth = 2.5;
    pen.strokeRect(...(box ?? [x + 12, y + 12, size - 24, size - 24]));
    pen.globalAlpha = 1;
  }

  function drawImage(context, point, x, y, size) {
    const atlas = atlases[run.atlas];
    if (!atlas || !atlas.image.complete || atlas.missing.has(point)) return null;
    const left = (point % atlas.columns) * atlas.cell, top = Math.floor(point / atlas.columns) * atlas.cell;
    const factor = size / Math.max(atlas.width, atlas.height);
    const w = atlas.width * factor, h = atlas.height * factor;
    const box = [x + (size - w) / 2, y + (size - h) / 2, w, h];
    context.imageSmoothingEnabled = atlas.width > 64;
    context.drawImage(atlas.image, left, top, atlas.width, atlas.height, ...box);
    return box;
  }

  function drawRing(point, radius) {
    pen.beginPath();
    pen.arc(xOf(point), yOf(point), radius + 5, 0, 2 * Math.PI);
    pen.lineWidth = 2;
    pen.strokeStyle = getComputedStyle(canvas).color;
    pen.stroke();
  }

  // One point: its card

  function nearest(x, y, maxDistance) {
    let best = -1, least = maxDistance * maxDistance;
    for (let point = 0; point < run.count; point += 1) {
      const dx = xOf(point) - x, dy = yOf(point) - y;
      const distance = dx * dx + dy * dy;
      if (distance < least && isShown(point)) { best = point; least = distance; }
    }
    return best;
  }

  function describe(point) {
    const number = `no. ${run.index[point].toLocaleString("en")}`;
    if (!run.labels) return [number, ""];
    const name = run.labels[point] < 0 ? "no label" : run.classes[run.labels[point]];
    if (!run.predicted || run.labels[point] < 0) return [name, number];
    const share = `${run.confidence[point]} % of the votes`;
    if (isCorrect(point)) return [name, `${number}\n\u2713 right, ${share}`];
    return [name, `${number}\n\u2715 taken for ${run.classes[run.predicted[point]] ?? "?"}, ${share}`];
  }

  function showCard(point) {
    if (point === current) return;
    current = point;
    draw();
    if (point < 0) { card.hidden = true; return; }
    const thumbnail = card.querySelector("canvas");
    const context = thumbnail.getContext("2d");
    context.clearRect(0, 0, thumbnail.width, thumbnail.height);
    thumbnail.hidden = !drawImage(context, point, 0, 0, thumbnail.width);
    const [title, details] = describe(point);
    card.querySelector("b").textContent = title;
    card.querySelector("span").textContent = details;
    card.hidden = false;
    const x = xOf(point), y = yOf(point);
    const left = x + 16 + card.offsetWidth > width ? x - 16 - card.offsetWidth : x + 16;
    const top = Math.min(Math.max(y - card.offsetHeight / 2, 6), height - card.offsetHeight - 6);
    card.style.transform = `translate(${Math.max(left, 6)}px, ${top}px)`;
    announcement.textContent = `${title}. ${details.replaceAll("\n", ". ")}`;
  }

  function showNext(dx, dy) {
    if (current < 0) { showCard(nearest(width / 2, height / 2, 1e9)); return; }
    const x = xOf(current), y = yOf(current);
    let best = -1, least = Infinity;
    for (let point = 0; point < run.count; point += 1) {
      if (point === current || !isShown(point)) continue;
      const along = (xOf(point) - x) * dx + (yOf(point) - y) * dy;
      const aside = Math.abs((xOf(point) - x) * dy) + Math.abs((yOf(point) - y) * dx);
      if (along > 0.5 && along + 2.5 * aside < least) { best = point; least = along + 2.5 * aside; }
    }
    if (best < 0) return;
    const px = xOf(best), py = yOf(best);
    if (px < 20 || px > width - 20) shiftX += width / 2 - px;
    if (py < 20 || py > height - 20) shiftY += height / 2 - py;
    showCard(best);
  }

  // Moving

  function zoom(factor, x = width / 2, y = height / 2) {
    const newScale = Math.min(Math.max(scale * factor, 0.6), 400);
    const ratio = newScale / scale;
    shiftX = (x - width / 2) * (1 - ratio) + shiftX * ratio;
    shiftY = (y - height / 2) * (1 - ratio) + shiftY * ratio;
    scale = newScale;
    showCard(-1);
    draw();
  }

  function showAll() {
    scale = 1; shiftX = 0; shiftY = 0;
    showCard(-1);
    draw();
  }

  const pointers = new Map();
  const positionOf = (event) => {
    const box = canvas.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  };
  const pinch = () => { // distance and center of two fingers
    const [a, b] = [...pointers.values()];
    return [Math.hypot(a[0] - b[0], a[1] - b[1]), (a[0] + b[0]) / 2, (a[1] + b[1]) / 2];
  };

  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    pointers.set(event.pointerId, positionOf(event));
    canvas.classList.add("dragging");
  });
  canvas.addEventListener("pointermove", (event) => {
    const position = positionOf(event);
    const before = pointers.get(event.pointerId);
    if (!before) { showCard(nearest(...position, 22)); return; }
    if (pointers.size === 2) {
      const [distanceBefore] = pinch();
      pointers.set(event.pointerId, position);
      const [distance, x, y] = pinch();
      if (distanceBefore > 0) zoom(distance / distanceBefore, x, y);
      return;
    }
    pointers.set(event.pointerId, position);
    shiftX += position[0] - before[0];
    shiftY += position[1] - before[1];
    if (position[0] !== before[0] || position[1] !== before[1]) showCard(-1);
    draw();
  });
  for (const end of ["pointerup", "pointercancel"]) {
    canvas.addEventListener(end, (event) => {
      pointers.delete(event.pointerId);
      if (!pointers.size) canvas.classList.remove("dragging");
      if (end === "pointerup" && !pointers.size) showCard(nearest(...positionOf(event), 26));
    });
  }
  canvas.addEventListener("pointerleave", () => { if (!pointers.size) showCard(-1); });
  canvas.addEventListener("blur", () => showCard(-1));
  canvas.addEventListener("wheel", (event) => {
    if (document.activeElement !== canvas && !event.ctrlKey) return; // the page goes on scrolling
    event.preventDefault();
    zoom(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0022)), ...positionOf(event));
  }, { passive: false });
  canvas.addEventListener("keydown", (event) => {
    const arrow = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (arrow && event.shiftKey) { shiftX -= 60 * arrow[0]; shiftY -= 60 * arrow[1]; showCard(-1); draw(); }
    else if (arrow) showNext(...arrow);
    else if (event.key === "+" || event.key === "=") zoom(1.5);
    else if (event.key === "-") zoom(1 / 1.5);
    else if (event.key === "0" || event.key === "Home") showAll();
    else if (event.key === "Escape") showCard(-1);
    else return;
    event.preventDefault();
  });

  document.getElementById("map-in").addEventListener("click", () => zoom(1.5));
  document.getElementById("map-out").addEventListener("click", () => zoom(1 / 1.5));
  document.getElementById("map-all").addEventListener("click", showAll);
  document.getElementById("legend-all").addEventListener("click", () => checkAll(true));
  document.getElementById("legend-none").addEventListener("click", () => checkAll(false));
  search.addEventListener("input", () => {
    const text = search.value.trim().toLowerCase();
    for (const row of legend.children) row.hidden = !row.querySelector("span").textContent.toLowerCase().includes(text);
  });
  for (const name of ["run", "layout", "color"]) document.getElementById(`map-${name}`)?.addEventListener("change", reset);

  function reset() {
    run = runs[Number(choice("run", 0))];
    layout = choice("layout", Object.keys(run.layouts)[0]);
    coloring = run.labels ? choice("color", "label") : "none";
    if (!run.predicted && coloring !== "none") coloring = "label";
    hiddenGroups.clear();
    highlighted = -1;
    document.getElementById("map-about").textContent = run.about[layout];
    showCard(-1);
    refresh();
  }

  function refresh() {
    fit = fitScale();
    assignGroups();
    buildLegend();
    draw();
  }

  new ResizeObserver(() => {
    width = canvas.clientWidth;
    height = canvas.clientHeight;
    pixelRatio = devicePixelRatio || 1;
    canvas.width = Math.round(width * pixelRatio);
    canvas.height = Math.round(height * pixelRatio);
    fit = fitScale();
    paint();
  }).observe(canvas);
  addEventListener("themechange", refresh);
  reset();
}

setUpMap();
