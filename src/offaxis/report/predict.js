// The page of a prediction: its theme. All that is drawn is there already.

(function start() {
  const button = document.getElementById("theme");
  function theme(name) {
    document.documentElement.dataset.theme = name;
    button.setAttribute("aria-pressed", String(name === "dark"));
  }
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  let own = false;
  theme(dark.matches ? "dark" : "light");
  dark.addEventListener("change", () => { if (!own) theme(dark.matches ? "dark" : "light"); });
  button.addEventListener("click", () => {
    own = true;
    theme(document.documentElement.dataset.theme === "dark" ? "light" : "dark");
  });
  let before = "light";
  window.addEventListener("beforeprint", () => { before = document.documentElement.dataset.theme; theme("light"); });
  window.addEventListener("afterprint", () => theme(before));
}());
