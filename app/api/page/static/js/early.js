// Runs before the first paint, so that a theme or language that was chosen does not flash in.
(() => {
  try {
    const prefs = JSON.parse(localStorage.getItem("tuili.prefs") ?? "{}");
    if (prefs.theme === "light" || prefs.theme === "dark") document.documentElement.dataset.theme = prefs.theme;
  } catch {
    // Storage that cannot be read holds no choice.
  }
})();
