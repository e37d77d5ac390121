"use strict";
// Light or dark: as the system has it, until the reader chooses.
psiFast.theme = (() => {
  const KEY = "psi-fast-theme";
  const system = window.matchMedia("(prefers-color-scheme: dark)");
  const listeners = [];

  function chosen() {
    try {
      return localStorage.getItem(KEY);
    } catch {
      return null; // a browser may forbid storage to pages from disk
    }
  }

  const dark = () => document.documentElement.dataset.theme === "dark";

  function apply(theme) {
    document.documentElement.dataset.theme = theme;
    label();
    listeners.forEach((listener) => listener());
  }

  function label() {
    const button = document.getElementById("theme");
    if (!button) return;
    button.textContent = dark() ? "Light" : "Dark";
    button.setAttribute("aria-label", `Change to ${dark() ? "light" : "dark"} colours`);
  }

  function toggle() {
    const theme = dark() ? "light" : "dark";
    apply(theme);
    try {
      localStorage.setItem(KEY, theme);
    } catch {
      // it holds for this visit
    }
  }

  const follow = () => apply(chosen() || (system.matches ? "dark" : "light"));
  system.addEventListener("change", follow);
  follow();
  return { dark, toggle, label, onChange: (listener) => listeners.push(listener) };
})();
