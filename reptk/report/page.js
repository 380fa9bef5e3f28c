"use strict";

const page = JSON.parse(document.getElementById("data").textContent);
const all = (selector, within = document) => [...within.querySelectorAll(selector)];

// Theme: as the system has it, until somebody chooses.

function themed() {
  const button = document.getElementById("theme");
  const root = document.documentElement;
  const kept = { get() { try { return localStorage.getItem("reptk-theme"); } catch { return null; } },
                 set(value) { try { localStorage.setItem("reptk-theme", value); } catch { /* this page alone */ } } };
  const system = matchMedia("(prefers-color-scheme: dark)");
  const show = (choice) => {
    if (choice === "auto") delete root.dataset.theme; else root.dataset.theme = choice;
    button.textContent = choice;
    button.setAttribute("aria-label", `theme: ${choice === "auto" ? "as the system has it" : choice}`);
    dispatchEvent(new Event("themechange"));
  };
  let choice = ["light", "dark"].includes(kept.get()) ? kept.get() : "auto";
  button.addEventListener("click", () => {
    const order = system.matches ? ["auto", "light", "dark"] : ["auto", "dark", "light"];
    choice = order[(order.indexOf(choice) + 1) % 3];
    kept.set(choice);
    show(choice);
  });
  system.addEventListener("change", () => dispatchEvent(new Event("themechange")));
  show(choice);
}

// Pictures are kept once and put where they are wanted.

function pictured() {
  for (const image of all("img[data-picture]")) {
    const source = page.pictures[image.dataset.picture];
    image.addEventListener("load", () => image.classList.toggle("small", image.naturalWidth <= 64), { once: true });
    if (source) image.src = source;
  }
}

// Tabs: arrow keys, Home and End go from one to the next.

function tabbed() {
  for (const tabs of all(".tabs")) {
    const list = tabs.querySelector('[role="tablist"]');
    const buttons = all('[role="tab"]', list);
    const show = (chosen, focus) => {
      for (const button of buttons) {
        const on = button === chosen;
        button.setAttribute("aria-selected", String(on));
        button.tabIndex = on ? 0 : -1;
        document.getElementById(button.getAttribute("aria-controls")).hidden = !on;
      }
      if (focus) chosen.focus();
    };
    list.addEventListener("click", (event) => {
      const button = event.target.closest('[role="tab"]');
      if (button) show(button, false);
    });
    list.addEventListener("keydown", (event) => {
      const at = buttons.indexOf(document.activeElement);
      const last = buttons.length - 1;
      const to = { ArrowRight: at === last ? 0 : at + 1, ArrowLeft: at === 0 ? last : at - 1, Home: 0, End: last }[event.key];
      if (at < 0 || to === undefined) return;
      event.preventDefault();
      show(buttons[to], true);
    });
    show(buttons[0], false);
  }
}

// Tables that a heading sorts.

function sortable() {
  for (const table of all("table.sortable")) {
    const heads = all("thead button", table);
    const body = table.tBodies[0];
    heads.forEach((head, column) => {
      head.closest("th").setAttribute("aria-sort", { up: "ascending", down: "descending" }[head.dataset.order] || "none");
      head.addEventListener("click", () => {
        const order = head.dataset.order === "up" ? "down" : "up";
        for (const other of heads) {
          other.dataset.order = other === head ? order : "none";
          other.closest("th").setAttribute("aria-sort", other === head ? (order === "up" ? "ascending" : "descending") : "none");
        }
        const key = (row) => {
          const cell = row.cells[column];
          return head.dataset.kind === "text" ? cell.textContent : Number(cell.firstElementChild.dataset.value);
        };
        const compare = head.dataset.kind === "text"
          ? (a, b) => key(a).localeCompare(key(b), undefined, { numeric: true })
          : (a, b) => key(a) - key(b);
        const rows = [...body.rows].sort(compare);
        body.append(...(order === "up" ? rows : rows.reverse()));
      });
    });
  }
}

// Curves read out by pointer and by arrow keys.

function curved() {
  for (const svg of all(".curve svg")) {
    const [first, last, left, right, , , , ] = JSON.parse(svg.dataset.frame);
    const series = JSON.parse(svg.dataset.series);
    const said = svg.parentElement.querySelector("output");
    const rule = svg.querySelector(".rule");
    const stops = [...new Set(series.flatMap(([, points]) => points.map(([x]) => x)))].sort((a, b) => a - b);
    let at = -1;
    const nearest = (points, x) => points.reduce((best, point) => (Math.abs(point[0] - x) < Math.abs(best[0] - x) ? point : best));
    const show = (stop) => {
      at = stop;
      const x = stops[stop];
      const place = left + ((x - first) / (last - first)) * (right - left);
      rule.setAttribute("x1", place);
      rule.setAttribute("x2", place);
      rule.style.visibility = "visible";
      const values = series.map(([, points]) => nearest(points, x)[2]).join("  ");
      said.textContent = `epoch ${Number(x.toFixed(2))}:  ${values}`;
    };
    const rest = () => {
      at = -1;
      rule.style.visibility = "hidden";
      said.textContent = said.dataset.rest;
    };
    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect();
      const inside = ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
      const x = first + ((inside - left) / (right - left)) * (last - first);
      show(stops.reduce((best, stop, index) => (Math.abs(stop - x) < Math.abs(stops[best] - x) ? index : best), 0));
    });
    svg.addEventListener("pointerleave", rest);
    svg.addEventListener("blur", rest);
    svg.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!step) return;
      event.preventDefault();
      show(at < 0 ? (step > 0 ? 0 : stops.length - 1) : Math.min(Math.max(at + step, 0), stops.length - 1));
    });
  }
}

// Commands to copy; where the clipboard is closed, they are selected.

function copied() {
  for (const button of all(".copy")) {
    const code = button.parentElement.querySelector("code");
    button.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(code.textContent);
        button.textContent = "copied";
      } catch {
        getSelection().selectAllChildren(code);
        button.textContent = "selected";
      }
      setTimeout(() => { button.textContent = "copy"; }, 1600);
    });
  }
}

// The bar says which section is being read.

function located() {
  const links = new Map(all("body > header nav a").map((link) => [link.hash.slice(1), link]));
  const watch = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      const link = links.get(entry.target.id);
      if (!link || !entry.isIntersecting) continue;
      for (const other of links.values()) other.removeAttribute("aria-current");
      link.setAttribute("aria-current", "true");
    }
  }, { rootMargin: "-20% 0px -75% 0px" });
  for (const section of all("main > section")) watch.observe(section);
}

themed();
pictured();
tabbed();
sortable();
curved();
copied();
located();
addEventListener("beforeprint", () => { for (const part of all("details")) part.open = true; });
