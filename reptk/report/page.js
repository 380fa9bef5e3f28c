"use strict";

const page = JSON.parse(document.getElementById("data").textContent);
const selectAll = (selector, within = document) => [...within.querySelectorAll(selector)];

// Theme: that of the system, until one is chosen.

function setUpTheme() {
  const button = document.getElementById("theme");
  const root = document.documentElement;
  const storage = { // a page opened from a file may have none; the choice then holds for this page alone
    get() { try { return localStorage.getItem("reptk-theme"); } catch { return null; } },
    set(value) { try { localStorage.setItem("reptk-theme", value); } catch { /* no storage */ } },
  };
  const system = matchMedia("(prefers-color-scheme: dark)");
  const show = (choice) => {
    if (choice === "auto") delete root.dataset.theme; else root.dataset.theme = choice;
    button.textContent = choice;
    button.setAttribute("aria-label", `theme: ${choice === "auto" ? "as the system has it" : choice}`);
    dispatchEvent(new Event("themechange"));
  };
  let choice = ["light", "dark"].includes(storage.get()) ? storage.get() : "auto";
  button.addEventListener("click", () => {
    const order = system.matches ? ["auto", "light", "dark"] : ["auto", "dark", "light"];
    choice = order[(order.indexOf(choice) + 1) % 3];
    storage.set(choice);
    show(choice);
  });
  system.addEventListener("change", () => dispatchEvent(new Event("themechange")));
  show(choice);
}

// Images: each is in the page's data once, and is put into every place that names it.

function setUpImages() {
  for (const image of selectAll("img[data-image]")) {
    const uri = page.images[image.dataset.image];
    image.addEventListener("load", () => image.classList.toggle("small", image.naturalWidth <= 64), { once: true });
    if (uri) image.src = uri;
  }
}

// Tabs: arrow keys, Home and End go from one to the next.

function setUpTabs() {
  for (const tabs of selectAll(".tabs")) {
    const list = tabs.querySelector('[role="tablist"]');
    const buttons = selectAll('[role="tab"]', list);
    const show = (selected, focus) => {
      for (const button of buttons) {
        const isSelected = button === selected;
        button.setAttribute("aria-selected", String(isSelected));
        button.tabIndex = isSelected ? 0 : -1;
        document.getElementById(button.getAttribute("aria-controls")).hidden = !isSelected;
      }
      if (focus) selected.focus();
    };
    list.addEventListener("click", (event) => {
      const button = event.target.closest('[role="tab"]');
      if (button) show(button, false);
    });
    list.addEventListener("keydown", (event) => {
      const current = buttons.indexOf(document.activeElement);
      const last = buttons.length - 1;
      const next = current === last ? 0 : current + 1;
      const previous = current === 0 ? last : current - 1;
      const target = { ArrowRight: next, ArrowLeft: previous, Home: 0, End: last }[event.key];
      if (current < 0 || target === undefined) return;
      event.preventDefault();
      show(buttons[target], true);
    });
    show(buttons[0], false);
  }
}

// Tables that are sorted by a click on a heading.

function setUpSorting() {
  for (const table of selectAll("table.sortable")) {
    const heads = selectAll("thead button", table);
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

// Curves: the pointer and the arrow keys read out their values.

function setUpCurves() {
  for (const svg of selectAll(".curve svg")) {
    const [first, last, left, right] = JSON.parse(svg.dataset.frame);
    const series = JSON.parse(svg.dataset.series);
    const readout = svg.parentElement.querySelector("output");
    const rule = svg.querySelector(".rule");
    const stops = [...new Set(series.flatMap(([, points]) => points.map(([x]) => x)))].sort((a, b) => a - b);
    let current = -1;
    const nearest = (points, x) => points.reduce((best, point) => (Math.abs(point[0] - x) < Math.abs(best[0] - x) ? point : best));
    const show = (stop) => {
      current = stop;
      const x = stops[stop];
      const position = left + ((x - first) / (last - first)) * (right - left);
      rule.setAttribute("x1", position);
      rule.setAttribute("x2", position);
      rule.style.visibility = "visible";
      const values = series.map(([, points]) => nearest(points, x)[2]).join("  ");
      readout.textContent = `epoch ${Number(x.toFixed(2))}:  ${values}`;
    };
    const reset = () => {
      current = -1;
      rule.style.visibility = "hidden";
      readout.textContent = readout.dataset.rest;
    };
    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect();
      const pointerX = ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
      const x = first + ((pointerX - left) / (right - left)) * (last - first);
      show(stops.reduce((best, stop, index) => (Math.abs(stop - x) < Math.abs(stops[best] - x) ? index : best), 0));
    });
    svg.addEventListener("pointerleave", reset);
    svg.addEventListener("blur", reset);
    svg.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!step) return;
      event.preventDefault();
      const last = stops.length - 1;
      if (current < 0) show(step > 0 ? 0 : last);
      else show(Math.min(Math.max(current + step, 0), last));
    });
  }
}

// Commands to copy; if the browser refuses the clipboard, they are selected.

function setUpCopyButtons() {
  for (const button of selectAll(".copy")) {
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

// The navigation marks the section that is being read.

function setUpNavigation() {
  const navigation = document.querySelector("body > header nav");
  const links = new Map(selectAll("body > header nav a").map((link) => [link.hash.slice(1), link]));
  const observer = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      const link = links.get(entry.target.id);
      if (!link || !entry.isIntersecting) continue;
      for (const other of links.values()) other.removeAttribute("aria-current");
      link.setAttribute("aria-current", "true");
      // On a phone the navigation is wider than the screen; scrollIntoView would move the page, too.
      navigation.scrollLeft = link.offsetLeft - navigation.offsetLeft - 24;
    }
  }, { rootMargin: "-20% 0px -75% 0px" });
  for (const section of selectAll("main > section")) observer.observe(section);
}

setUpTheme();
setUpImages();
setUpTabs();
setUpSorting();
setUpCurves();
setUpCopyButtons();
setUpNavigation();

// On paper nothing can be opened. The recipe in full is not for it.

let openedForPrint = [];
addEventListener("beforeprint", () => {
  openedForPrint = selectAll("details:not([open], .whole)");
  for (const part of openedForPrint) part.open = true;
});
addEventListener("afterprint", () => { for (const part of openedForPrint) part.open = false; });
