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

  const dark = () => (document.documentElement.dataset.theme || (system.matches ? "dark" : "light")) === "dark";

  function apply() {
    const theme = chosen();
    if (theme) document.documentElement.dataset.theme = theme;
    label();
  }

  function label() {
    const button = document.getElementById("theme");
    if (!button) return;
    button.textContent = dark() ? "Light" : "Dark";
    button.setAttribute("aria-label", `Change to ${dark() ? "light" : "dark"} colours`);
  }

  function toggle() {
    const theme = dark() ? "light" : "dark";
    document.documentElement.dataset.theme = theme;
    try {
      localStorage.setItem(KEY, theme);
    } catch {
      // it holds for this visit
    }
    changed();
  }

  function changed() {
    label();
    listeners.forEach((listener) => listener());
  }

  system.addEventListener("change", changed);
  apply();
  return { dark, toggle, label, onChange: (listener) => listeners.push(listener) };
})();
