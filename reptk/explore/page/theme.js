// The theme: that of the system, until one is chosen for this page.

export function setUpTheme() {
  const button = document.getElementById("theme");
  const root = document.documentElement;
  const choices = ["auto", "light", "dark"];
  const show = (choice) => {
    if (choice === "auto") delete root.dataset.theme;
    else root.dataset.theme = choice;
    button.textContent = choice;
    button.setAttribute("aria-label", `theme: ${choice === "auto" ? "as the system has it" : choice}`);
  };
  let choice = "auto";
  button.addEventListener("click", () => {
    choice = choices[(choices.indexOf(choice) + 1) % choices.length];
    show(choice);
  });
  show(choice);
}
