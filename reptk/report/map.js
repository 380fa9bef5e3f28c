
// The map of the embedding: points on a canvas, pictures from an atlas, a legend that switches classes.

function mapped() {
  const canvas = document.getElementById("map");
  if (!canvas) return;
  const pen = canvas.getContext("2d");
  const card = document.getElementById("map-card");
  const said = document.getElementById("map-said");
  const chosen = (name, fallback) => document.getElementById(`map-${name}`)?.value ?? fallback;
  const hidden = new Set();
  const spaces = page.maps.map(unpacked);
  const atlases = Object.fromEntries(Object.entries(page.atlases).map(([name, atlas]) => [name, opened(atlas)]));

  let space = spaces[0];
  let layout = Object.keys(space.layouts)[0];
  let colouring = space.labels ? "label" : "none";
  let groups, colours;
  let scale = 1, shiftX = 0, shiftY = 0;
  let width = 0, height = 0, dots = 1, fit = 1;
  let current = -1, glowing = -1, waiting = false;

  function unpacked(packed) {
    const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)).buffer;
    const whole = (text) => (text === null ? null : new Int32Array(bytes(text)));
    const layouts = {}, spans = {};
    for (const [kind, text] of Object.entries(packed.layouts)) {
      layouts[kind] = new Uint16Array(bytes(text));
      spans[kind] = [0, 1].map((axis) => Math.max(...ends(layouts[kind], axis).map((end) => 2 * Math.abs(end - 32767.5)), 1));
    }
    return { ...packed, layouts, spans, numbers: whole(packed.numbers), labels: whole(packed.labels),
             predicted: whole(packed.predicted), confidence: new Uint8Array(bytes(packed.confidence)) };
  }

  function ends(places, axis) {
    let low = 65535, high = 0;
    for (let at = axis; at < places.length; at += 2) { low = Math.min(low, places[at]); high = Math.max(high, places[at]); }
    return [low, high];
  }

  function opened(atlas) {
    if (!atlas) return null;
    const image = new Image();
    image.addEventListener("load", () => { draw(); });
    image.src = atlas.uri;
    return { ...atlas, image, missing: new Set(atlas.missing) };
  }

  // Groups: what the legend lists and a colour stands for.

  const isRight = (point) => space.labels[point] === space.predicted[point];

  function groupOf(point) {
    if (colouring === "none") return 0;
    if (colouring === "right") return space.labels[point] < 0 ? 2 : isRight(point) ? 0 : 1;
    const label = space[colouring === "label" ? "labels" : "predicted"][point];
    return label < 0 ? space.classes.length : label;
  }

  function names() {
    if (colouring === "none") return ["query"];
    return colouring === "right" ? ["right", "wrong", "no label"] : [...space.classes, "no label"];
  }

  function palette(count, dark) {
    const style = getComputedStyle(document.documentElement);
    const quiet = style.getPropertyValue("--quiet");
    if (colouring === "none") return [style.getPropertyValue("--accent")];
    if (colouring === "right") return [style.getPropertyValue("--accent"), style.getPropertyValue("--wrong"), quiet];
    const few = dark
      ? ["#6fb7ff", "#ffb45e", "#63d69b", "#ff8b82", "#b9a2ff", "#d8a97c", "#ff9fd6", "#c9d162", "#5fd6dd", "#b4b8bf"]
      : ["#2f6db5", "#d9770f", "#2a8f57", "#c8403a", "#7a57c2", "#84563a", "#c64d94", "#858a12", "#1791a0", "#6c7178"];
    const coprime = (a, b) => (b ? coprime(b, a % b) : a === 1);
    let stride = Math.max(1, Math.round((count - 1) * 0.382));
    while (!coprime(stride, count - 1)) stride += 1;
    return Array.from({ length: count }, (_, at) => {
      if (at === count - 1) return quiet;
      if (count - 1 <= few.length) return few[at];
      const slot = (at * stride) % (count - 1); // neighbours in the list are far apart in hue
      const light = (dark ? [66, 80, 56] : [40, 56, 28])[slot % 3];
      return `hsl(${(slot * 360) / (count - 1)} ${dark ? 68 : 62}% ${light}%)`;
    });
  }

  function regroup() {
    groups = Uint32Array.from({ length: space.count }, (_, point) => groupOf(point));
    const dark = getComputedStyle(document.documentElement).colorScheme.includes("dark");
    colours = palette(names().length, dark);
  }

  // Legend

  const legend = document.getElementById("legend-items");
  const find = document.getElementById("legend-find");

  function listed() {
    const counts = new Uint32Array(names().length);
    for (const group of groups) counts[group] += 1;
    legend.replaceChildren(...names().flatMap((name, group) => (counts[group] ? [item(name, group, counts[group])] : [])));
    find.hidden = legend.children.length <= 14;
    find.value = "";
    document.getElementById("legend").hidden = colouring === "none";
  }

  function item(name, group, count) {
    const row = document.createElement("li");
    const label = document.createElement("label");
    const box = Object.assign(document.createElement("input"), { type: "checkbox", checked: !hidden.has(group) });
    const text = Object.assign(document.createElement("span"), { textContent: name, title: name });
    box.addEventListener("change", () => {
      if (box.checked) hidden.delete(group); else hidden.add(group);
      draw();
    });
    row.addEventListener("pointerenter", () => { glowing = group; draw(); });
    row.addEventListener("pointerleave", () => { glowing = -1; draw(); });
    label.append(box, swatch(group), text, Object.assign(document.createElement("small"), { textContent: count.toLocaleString("en") }));
    row.append(label);
    return row;
  }

  function swatch(group) {
    const made = Object.assign(document.createElement("canvas"), { width: 28, height: 28 });
    const own = made.getContext("2d");
    own.scale(2, 2);
    own.fillStyle = own.strokeStyle = colours[group];
    sign(own, 7, 7, 4.5, colouring === "right" && group === 1);
    own.fill();
    own.stroke();
    return made;
  }

  function switched(on) {
    const shown = all("li:not([hidden]) input", legend);
    for (const box of shown) if (box.checked !== on) box.click();
  }

  // Drawing

  const inset = 26;
  const fits = () => Math.min((width - 2 * inset) / space.spans[layout][0], (height - 2 * inset) / space.spans[layout][1]);
  const placeX = (point) => (space.layouts[layout][2 * point] - 32767.5) * fit * scale + width / 2 + shiftX;
  const placeY = (point) => (32767.5 - space.layouts[layout][2 * point + 1]) * fit * scale + height / 2 + shiftY;
  const isShown = (point) => !hidden.has(groups[point]);

  function draw() {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; paint(); });
  }

  function paint() {
    pen.setTransform(dots, 0, 0, dots, 0, 0);
    pen.clearRect(0, 0, width, height);
    const radius = Math.min(Math.max((space.count > 4000 ? 1.6 : 2.9) * scale ** 0.35, 1.5), 7);
    const seen = [];
    for (let point = 0; point < space.count; point += 1) {
      const x = placeX(point), y = placeY(point);
      if (x > -40 && y > -40 && x < width + 40 && y < height + 40 && isShown(point)) seen.push(point);
    }
    const pictures = seen.length <= 220 && scale > 1.5 && atlases[space.atlas]?.image.complete;
    if (pictures) for (const point of seen) framed(point);
    else dotted(seen, radius);
    if (current >= 0) ringed(current, radius);
  }

  const layers = 16;

  function dotted(seen, radius) { // in layers of all groups, so that none lies over all others
    const over = Array.from({ length: layers + 1 }, () => new Map());
    for (const point of seen) {
      const group = groups[point];
      const layer = over[group === glowing ? layers : (point * 7919) % layers];
      if (!layer.has(group)) layer.set(group, []);
      layer.get(group).push(point);
    }
    for (const [group, points] of over.flatMap((layer) => [...layer])) {
      pen.globalAlpha = glowing >= 0 && group !== glowing ? 0.12 : space.count > 4000 ? 0.72 : 0.85;
      pen.fillStyle = pen.strokeStyle = colours[group];
      pen.lineWidth = 1.4;
      pen.beginPath();
      const crossed = colouring === "right" && group === 1;
      for (const point of points) sign(pen, placeX(point), placeY(point), radius, crossed, true);
      if (crossed) pen.stroke(); else pen.fill();
    }
    pen.globalAlpha = 1;
  }

  function sign(on, x, y, radius, crossed, going = false) {
    if (!going) on.beginPath();
    if (crossed) {
      on.moveTo(x - radius, y - radius); on.lineTo(x + radius, y + radius);
      on.moveTo(x - radius, y + radius); on.lineTo(x + radius, y - radius);
    } else {
      on.moveTo(x + radius, y);
      on.arc(x, y, radius, 0, 2 * Math.PI);
    }
  }

  function framed(point) {
    const large = 44;
    const x = placeX(point) - large / 2, y = placeY(point) - large / 2;
    pen.globalAlpha = glowing >= 0 && groups[point] !== glowing ? 0.25 : 1;
    const drawn = picture(pen, point, x, y, large);
    pen.strokeStyle = colours[groups[point]];
    pen.lineWidth = 2.5;
    pen.strokeRect(...(drawn ?? [x + 12, y + 12, large - 24, large - 24]));
    pen.globalAlpha = 1;
  }

  function picture(on, point, x, y, large) {
    const atlas = atlases[space.atlas];
    if (!atlas || !atlas.image.complete || atlas.missing.has(point)) return null;
    const left = (point % atlas.columns) * atlas.cell, top = Math.floor(point / atlas.columns) * atlas.cell;
    const factor = large / Math.max(atlas.width, atlas.height);
    const w = atlas.width * factor, h = atlas.height * factor;
    const box = [x + (large - w) / 2, y + (large - h) / 2, w, h];
    on.imageSmoothingEnabled = atlas.width > 64;
    on.drawImage(atlas.image, left, top, atlas.width, atlas.height, ...box);
    return box;
  }

  function ringed(point, radius) {
    pen.beginPath();
    pen.arc(placeX(point), placeY(point), radius + 5, 0, 2 * Math.PI);
    pen.lineWidth = 2;
    pen.strokeStyle = getComputedStyle(canvas).color;
    pen.stroke();
  }

  // Looking at one point

  function nearest(x, y, most) {
    let best = -1, least = most * most;
    for (let point = 0; point < space.count; point += 1) {
      const dx = placeX(point) - x, dy = placeY(point) - y;
      const distance = dx * dx + dy * dy;
      if (distance < least && isShown(point)) { best = point; least = distance; }
    }
    return best;
  }

  function described(point) {
    const number = `no. ${space.numbers[point].toLocaleString("en")}`;
    if (!space.labels) return [number, ""];
    const name = space.labels[point] < 0 ? "no label" : space.classes[space.labels[point]];
    if (!space.predicted || space.labels[point] < 0) return [name, number];
    const share = `${space.confidence[point]} % of the votes`;
    return isRight(point) ? [name, `${number}\n\u2713 right, ${share}`]
                          : [name, `${number}\n\u2715 taken for ${space.classes[space.predicted[point]] ?? "?"}, ${share}`];
  }

  function look(point) {
    if (point === current) return;
    current = point;
    draw();
    if (point < 0) { card.hidden = true; return; }
    const own = card.querySelector("canvas");
    const own2d = own.getContext("2d");
    own2d.clearRect(0, 0, own.width, own.height);
    own.hidden = !picture(own2d, point, 0, 0, own.width);
    const [head, rest] = described(point);
    card.querySelector("b").textContent = head;
    card.querySelector("span").textContent = rest;
    card.hidden = false;
    const x = placeX(point), y = placeY(point);
    const left = x + 16 + card.offsetWidth > width ? x - 16 - card.offsetWidth : x + 16;
    const top = Math.min(Math.max(y - card.offsetHeight / 2, 6), height - card.offsetHeight - 6);
    card.style.transform = `translate(${Math.max(left, 6)}px, ${top}px)`;
    said.textContent = `${head}. ${rest.replaceAll("\n", ". ")}`;
  }

  function step(dx, dy) {
    if (current < 0) { look(nearest(width / 2, height / 2, 1e9)); return; }
    const x = placeX(current), y = placeY(current);
    let best = -1, least = Infinity;
    for (let point = 0; point < space.count; point += 1) {
      if (point === current || !isShown(point)) continue;
      const along = (placeX(point) - x) * dx + (placeY(point) - y) * dy;
      const aside = Math.abs((placeX(point) - x) * dy) + Math.abs((placeY(point) - y) * dx);
      if (along > 0.5 && along + 2.5 * aside < least) { best = point; least = along + 2.5 * aside; }
    }
    if (best < 0) return;
    const px = placeX(best), py = placeY(best);
    if (px < 20 || px > width - 20) shiftX += width / 2 - px;
    if (py < 20 || py > height - 20) shiftY += height / 2 - py;
    look(best);
  }

  // Moving

  function zoom(factor, x = width / 2, y = height / 2) {
    const to = Math.min(Math.max(scale * factor, 0.6), 400);
    const ratio = to / scale;
    shiftX = (x - width / 2) * (1 - ratio) + shiftX * ratio;
    shiftY = (y - height / 2) * (1 - ratio) + shiftY * ratio;
    scale = to;
    look(-1);
    draw();
  }

  function whole() {
    scale = 1; shiftX = 0; shiftY = 0;
    look(-1);
    draw();
  }

  const fingers = new Map();
  const inside = (event) => {
    const box = canvas.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  };
  const spread = () => {
    const [a, b] = [...fingers.values()];
    return [Math.hypot(a[0] - b[0], a[1] - b[1]), (a[0] + b[0]) / 2, (a[1] + b[1]) / 2];
  };

  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    fingers.set(event.pointerId, inside(event));
    canvas.classList.add("dragging");
  });
  canvas.addEventListener("pointermove", (event) => {
    const at = inside(event);
    const before = fingers.get(event.pointerId);
    if (!before) { look(nearest(...at, 22)); return; }
    if (fingers.size === 2) {
      const [apart] = spread();
      fingers.set(event.pointerId, at);
      const [now, x, y] = spread();
      if (apart > 0) zoom(now / apart, x, y);
      return;
    }
    fingers.set(event.pointerId, at);
    shiftX += at[0] - before[0];
    shiftY += at[1] - before[1];
    if (at[0] !== before[0] || at[1] !== before[1]) look(-1);
    draw();
  });
  for (const end of ["pointerup", "pointercancel"]) {
    canvas.addEventListener(end, (event) => {
      fingers.delete(event.pointerId);
      if (!fingers.size) canvas.classList.remove("dragging");
      if (end === "pointerup" && !fingers.size) look(nearest(...inside(event), 26));
    });
  }
  canvas.addEventListener("pointerleave", () => { if (!fingers.size) look(-1); });
  canvas.addEventListener("blur", () => look(-1));
  canvas.addEventListener("wheel", (event) => {
    if (document.activeElement !== canvas && !event.ctrlKey) return; // the page goes on scrolling
    event.preventDefault();
    zoom(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0022)), ...inside(event));
  }, { passive: false });
  canvas.addEventListener("keydown", (event) => {
    const arrow = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (arrow && event.shiftKey) { shiftX -= 60 * arrow[0]; shiftY -= 60 * arrow[1]; look(-1); draw(); }
    else if (arrow) step(...arrow);
    else if (event.key === "+" || event.key === "=") zoom(1.5);
    else if (event.key === "-") zoom(1 / 1.5);
    else if (event.key === "0" || event.key === "Home") whole();
    else if (event.key === "Escape") look(-1);
    else return;
    event.preventDefault();
  });

  document.getElementById("map-in").addEventListener("click", () => zoom(1.5));
  document.getElementById("map-out").addEventListener("click", () => zoom(1 / 1.5));
  document.getElementById("map-all").addEventListener("click", whole);
  document.getElementById("legend-all").addEventListener("click", () => switched(true));
  document.getElementById("legend-none").addEventListener("click", () => switched(false));
  find.addEventListener("input", () => {
    const wanted = find.value.trim().toLowerCase();
    for (const row of legend.children) row.hidden = !row.querySelector("span").textContent.toLowerCase().includes(wanted);
  });
  for (const name of ["run", "layout", "colour"]) document.getElementById(`map-${name}`)?.addEventListener("change", restart);

  function restart() {
    space = spaces[Number(chosen("run", 0))];
    layout = chosen("layout", Object.keys(space.layouts)[0]);
    colouring = space.labels ? chosen("colour", "label") : "none";
    if (!space.predicted && colouring !== "none") colouring = "label";
    hidden.clear();
    glowing = -1;
    document.getElementById("map-about").textContent = space.about[layout];
    look(-1);
    recolour();
  }

  function recolour() {
    fit = fits();
    regroup();
    listed();
    draw();
  }

  new ResizeObserver(() => {
    width = canvas.clientWidth;
    height = canvas.clientHeight;
    dots = devicePixelRatio || 1;
    canvas.width = Math.round(width * dots);
    canvas.height = Math.round(height * dots);
    fit = fits();
    paint();
  }).observe(canvas);
  addEventListener("themechange", recolour);
  restart();
}

mapped();
