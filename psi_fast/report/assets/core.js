"use strict";
// One namespace. Data files are plain scripts that call `receive`, since a page opened from disk may fetch nothing.
const psiFast = (() => {
  const held = new Map(); // name -> data
  const awaited = new Map(); // path -> promise that its script has run

  function receive(name, data) {
    held.set(name, data);
  }

  function load(name) {
    if (held.has(name)) return Promise.resolve(held.get(name));
    const path = `data/${name}.js`;
    return script(path).then(() => {
      if (!held.has(name)) throw new Error(`${path} is empty; make the report again`);
      return held.get(name);
    });
  }

  // Run a script of the report's folder, once.
  function script(path) {
    if (!awaited.has(path)) {
      const promise = new Promise((resolve, reject) => {
        const own = document.createElement("script");
        own.src = path;
        own.onload = resolve;
        own.onerror = () => reject(new Error(`${path} is missing; copy the whole report folder`));
        document.head.append(own);
      });
      promise.catch(() => awaited.delete(path));
      awaited.set(path, promise);
    }
    return awaited.get(path);
  }

  // An element with text and elements in it; text stays text, whatever it holds.
  function element(tag, attributes = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (value === null || value === undefined || value === false) continue;
      if (name === "style") Object.assign(made.style, value);
      else if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
      else made.setAttribute(name, value === true ? "" : value);
    }
    made.append(...children.flat().filter((child) => child !== null && child !== undefined));
    return made;
  }

  const number = (value, digits) => (value === null || value === undefined ? "–" : value.toFixed(digits));
  const short = (value) => (value === null || value === undefined ? "–" : String(Number(value.toPrecision(3))));

  // Very small numbers as 10^-4 would hide that they are bounded by the draws: two digits say enough.
  function probability(value) {
    if (value === null || value === undefined) return "–";
    return value >= 0.0995 ? value.toFixed(2) : String(Number(value.toPrecision(2)));
  }

  // Colours that colour-blind readers tell apart (Okabe and Ito), blue first, as in the figures; on a dark page the deep blue is
  // lighter and the light blue yellow.
  const LIGHT = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#777777"];
  const DARK = ["#4aa3df", "#e8772e", "#1fb58a", "#d98fb8", "#e69f00", "#f0e442", "#9a9a9a"];
  const colours = () => (psiFast.theme.dark() ? DARK : LIGHT);
  const colour = (cluster) => (cluster < 0 ? "#999999" : colours()[cluster % LIGHT.length]);
  const partColour = (name) => colours()[{ S: 2, Q: 3, D: 4 }[name]];

  // A tile of a sprite sheet as an element's background, `side` px wide.
  function tile(element, sheet, place, columns, side) {
    element.style.backgroundImage = `url("${sheet}")`;
    element.style.backgroundPosition = `-${(place % columns) * side}px -${Math.floor(place / columns) * side}px`;
    element.style.backgroundSize = `${columns * side}px auto`;
    element.style.width = element.style.height = `${side}px`;
    return element;
  }

  // What the reader came for stands there; charts may still be on their way.
  const opened = () => (document.documentElement.dataset.opened = location.hash || "#");

  const numbered = (count) => String(count).padStart(3, "0");

  // The last of `firsts` (ascending) that is not above `place`.
  function part(firsts, place) {
    let found = 0;
    while (found + 1 < firsts.length && firsts[found + 1] <= place) found += 1;
    return found;
  }

  // Names of the flags that a row carries.
  const flagsOf = (index, table, row) => index.flags.filter((_, bit) => table.flags[row] & (1 << bit));

  // log10 of PSI / (1 - PSI): tells apart channels whose PSI rounds to 1.
  const logOdds = (logPsi) => (logPsi === null ? null : (logPsi - Math.log(-Math.expm1(Math.min(logPsi, -1e-300)))) / Math.LN10);

  // Quantiles of the odds of PSI over the channels of a layer that have one.
  function spread(table, layer) {
    const sorted = table.log_psi.slice(layer.first, layer.first + layer.channels).filter((value) => value !== null).map(logOdds).sort((a, b) => a - b);
    const at = (share) => {
      if (!sorted.length) return null;
      const place = (sorted.length - 1) * share;
      const low = Math.floor(place);
      return sorted[low] + (sorted[Math.min(low + 1, sorted.length - 1)] - sorted[low]) * (place - low);
    };
    return { layer: layer.key, p5: at(0.05), p25: at(0.25), p50: at(0.5), p75: at(0.75), p95: at(0.95) };
  }

  return { receive, load, script, element, number, short, probability, colour, colours, partColour, tile, numbered, opened, part, flagsOf, logOdds, spread };
})();
