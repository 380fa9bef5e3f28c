
// A click on an image enlarges it in a dialog; the arrow keys go to the other images of its group.

function setUpEnlarging() {
  const dialog = document.getElementById("enlarged");
  const shown = dialog.querySelector("img");
  const [title, place] = ["b", "span"].map((name) => dialog.querySelector(name));
  const link = dialog.querySelector("a");
  let images = [], current = 0;

  const show = (index) => {
    current = (index + images.length) % images.length;
    const image = images[current];
    shown.src = image.src;
    shown.alt = image.alt;
    shown.classList.toggle("small", image.naturalWidth <= 64);
    title.textContent = image.alt;
    place.textContent = `${current + 1} of ${images.length}`;
    link.hidden = !image.dataset.file;
    if (image.dataset.file) link.setAttribute("href", image.dataset.file);
  };

  for (const group of document.querySelectorAll("[data-enlarge]")) {
    group.addEventListener("click", (event) => {
      const image = event.target.closest("img") ?? event.target.closest("button.enlarge")?.querySelector("img");
      if (!image) return;
      images = [...group.querySelectorAll("img")];
      show(images.indexOf(image));
      dialog.showModal();
    });
  }
  dialog.querySelector(".previous").addEventListener("click", () => show(current - 1));
  dialog.querySelector(".next").addEventListener("click", () => show(current + 1));
  dialog.querySelector(".close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    show(current + step);
  });
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); }); // beside it
}

setUpEnlarging();
