"use strict";
// Charts as Vega-Lite specifications; each takes data and returns a specification.
psiFast.charts = (() => {
  const { colour, colours, partColour } = psiFast;
  const drawn = []; // what is on the page: redrawn when the colours change

  function look() {
    const style = getComputedStyle(document.documentElement);
    const [ink, soft, line] = ["--ink", "--soft", "--line"].map((name) => style.getPropertyValue(name).trim());
    const words = { labelColor: soft, titleColor: soft, labelFontSize: 11, titleFontSize: 11, titleFontWeight: "normal" };
    return {
      background: null,
      font: style.getPropertyValue("--font").trim(),
      view: { stroke: null },
      axis: { ...words, gridColor: line, domainColor: line, tickColor: line, tickCount: 5 },
      legend: { ...words, symbolStrokeWidth: 2 },
      header: words,
      title: { color: ink, fontSize: 12, fontWeight: 600, anchor: "start" },
      text: { color: ink },
      rule: { color: ink },
      range: { category: colours() },
    };
  }

  // Let the page answer its reader between two charts.
  const pause = () => new Promise((resolve) => setTimeout(resolve));

  // What a chart is drawn for: with all this as it was, it need not be drawn again.
  const stateOf = (place, about) => [about, place.clientWidth, psiFast.theme.dark()].join();

  // Draw `make(width)` into `place`, unless it is there already or out of sight; `about` is what a reader who cannot see it is told.
  async function draw(place, make, about, renderer = "svg") {
    await pause();
    await psiFast.script("assets/vega.js"); // a megabyte that table and patches need not wait for
    if (!place.clientWidth) return;
    if (drawn.some((one) => one.place === place && one.state === stateOf(place, about))) return;
    for (let i = drawn.length - 1; i >= 0; i -= 1) {
      if (drawn[i].place === place || !drawn[i].place.isConnected) drawn.splice(i, 1)[0].view?.finalize();
    }
    const entry = { place, make, about, renderer, view: null };
    drawn.push(entry);
    await paint(entry);
  }

  async function paint(entry) {
    const width = Math.max(120, entry.place.clientWidth);
    entry.state = stateOf(entry.place, entry.about);
    const spec = { $schema: "https://vega.github.io/schema/vega-lite/v6.json", description: entry.about, ...entry.make(width) };
    const options = { actions: false, renderer: entry.renderer, config: look(), mode: "vega-lite", hover: false };
    entry.view?.finalize();
    entry.view = (await window.vegaEmbed(entry.place, spec, options)).view;
    entry.place.setAttribute("role", "img"); // one picture with one text, not a hundred marks
    entry.place.setAttribute("aria-label", entry.about);
  }

  async function redraw() {
    for (const entry of drawn.filter((one) => one.place.isConnected && one.place.clientWidth > 0)) await paint(entry);
  }
  psiFast.theme.onChange(redraw);
  let resized = 0;
  let lastWidth = window.innerWidth;
  window.addEventListener("resize", () => {
    if (window.innerWidth === lastWidth) return; // a phone's address bar changes only the height
    lastWidth = window.innerWidth;
    clearTimeout(resized);
    resized = setTimeout(redraw, 150);
  });

  const fit = { type: "fit-x", contains: "padding" };
  // Bars from a histogram; where all values are alike there is no width to share out, and one bar stands for all.
  function bins({ low, high, counts }) {
    const all = counts.reduce((sum, count) => sum + count, 0);
    const half = Math.abs(low) * 0.02 || 0.01;
    if (high === low) return [{ from: low - half, to: low + half, count: all }];
    const step = (high - low) / counts.length;
    return counts.map((count, i) => ({ from: low + i * step, to: low + (i + 1) * step, count }));
  }

  // An axis that holds the bars and what else is marked, with some room.
  function reach(bars, marked) {
    const ends = [Math.min(bars[0].from, ...marked), Math.max(bars[bars.length - 1].to, ...marked)];
    const room = (ends[1] - ends[0]) * 0.03;
    return [ends[0] - room, ends[1] + room];
  }

  function baselines(series, title, width) {
    const values = series.flatMap(({ name, low, high, shares }) =>
      bins({ low, high, counts: shares }).map((bin) => ({ from: bin.from, to: bin.to, share: bin.count, name })));
    const names = series.map((one) => one.name);
    const step = values.length ? values[0].to - values[0].from : 1;
    return {
      width, height: 240, autosize: fit, data: { values },
      transform: [{ calculate: "(datum.from + datum.to) / 2", as: "middle" }],
      encoding: {
        x: { field: "middle", type: "quantitative", title: `${title} (right: more polysemantic)`,
          axis: { tickCount: 8, format: "~g" },
          scale: { domain: [series[0].low, series[0].high], nice: false } },
        y: { field: "share", type: "quantitative", title: `share per bin of ${step.toPrecision(2)}`, axis: { format: "%" } },
        color: { field: "name", type: "nominal", sort: names, title: null, legend: { orient: "top", columns: width < 500 ? 1 : 3 },
          scale: { domain: names, range: [colours()[0], "#767676", colours()[1]] } },
      },
      layer: [
        { transform: [{ filter: { field: "name", equal: names[0] } }],
          mark: { type: "bar", opacity: 0.55, binSpacing: 0, tooltip: true },
          encoding: { x: { field: "from", type: "quantitative", bin: { binned: true } }, x2: { field: "to" } } },
        { transform: [{ filter: { not: { field: "name", equal: names[0] } } }],
          mark: { type: "line", interpolate: "step", strokeWidth: 2 },
          encoding: { strokeDash: { field: "name", type: "nominal", sort: names, title: null, scale: { domain: names, range: [[1, 0], [5, 3], [1, 0]] } } } },
      ],
    };
  }

  function components(rows, parts, width) {
    const pairs = parts.flatMap((a, i) => parts.slice(i + 1).map((b) => [a, b]));
    const columns = width < 620 ? 1 : pairs.length;
    const side = Math.max(140, Math.min(340, Math.floor(width / columns) - 75));
    const axis = (part) => ({ field: part, type: "quantitative", title: `${part}^`, scale: { domain: [0, 1] } });
    return {
      data: { values: rows }, columns, spacing: 20,
      concat: pairs.map(([a, b]) => ({
        width: side, height: side,
        mark: { type: "point", filled: true, size: 14, opacity: 0.45, color: colours()[0] },
        encoding: { x: axis(a), y: axis(b),
          tooltip: [{ field: "key", title: "channel" }, ...parts.map((part) => ({ field: part, title: `${part}^`, format: ".3f" }))] },
      })),
    };
  }

  function layers(rows, order, width) {
    return {
      width, height: Math.max(70, order.length * 34), autosize: fit, data: { values: rows },
      encoding: { y: { field: "layer", type: "nominal", sort: order, title: null, axis: { labelLimit: 180 } },
        x: { field: "p50", type: "quantitative", title: "log10 of PSI / (1 - PSI): median, quartiles, 5 % and 95 %", scale: { zero: false } } },
      layer: [
        { mark: { type: "rule" }, encoding: { x: { field: "p5", type: "quantitative" }, x2: { field: "p95" } } },
        { mark: { type: "bar", height: 14, color: colours()[0] }, encoding: { x: { field: "p25", type: "quantitative" }, x2: { field: "p75" } } },
        { mark: { type: "tick", thickness: 3, size: 20, color: colours()[1] }, encoding: { x: { field: "p50", type: "quantitative" } } },
      ].map((one) => ({ ...one, mark: { tooltip: true, ...one.mark } })),
    };
  }

  function bars(values, title, width) {
    return {
      width, height: Math.max(40, values.length * 24), autosize: fit, data: { values },
      encoding: { y: { field: "name", type: "nominal", sort: null, title: null, axis: { labelLimit: 200 } },
        x: { field: "value", type: "quantitative", title, axis: { tickMinStep: 1 } } },
      layer: [
        { mark: { type: "bar", color: colours()[0] } },
        { mark: { type: "text", align: "left", dx: 4 }, encoding: { text: { field: "said" } } },
      ],
    };
  }

  function nulls(part, { observed, ...histogram }, width) {
    const values = bins(histogram);
    const domain = reach(values, [observed]);
    return {
      width, height: 130, autosize: fit,
      layer: [
        { data: { values }, mark: { type: "bar", color: "#767676", binSpacing: 0, tooltip: true },
          encoding: { x: { field: "from", type: "quantitative", bin: { binned: true }, title: part, scale: { domain, nice: false, zero: false } }, x2: { field: "to" },
            y: { field: "count", type: "quantitative", title: "null draws", axis: { tickMinStep: 1, format: "d" } } } },
        { data: { values: [{ observed }] }, mark: { type: "rule", strokeWidth: 3, color: partColour(part), tooltip: true },
          encoding: { x: { field: "observed", type: "quantitative" } } },
      ],
    };
  }

  function silhouettes(patches, width) {
    const values = patches.map((patch, i) => ({ ...patch, place: i }));
    return {
      width, height: 170, autosize: fit, data: { values },
      mark: { type: "bar", tooltip: true },
      encoding: {
        x: { field: "place", type: "ordinal", title: "patches, by cluster", axis: { labels: false, ticks: false }, scale: { paddingInner: 0 } },
        y: { field: "silhouette", type: "quantitative", title: "silhouette" },
        color: { field: "cluster", type: "nominal", legend: null, scale: { domain: clustersOf(values), range: clustersOf(values).map((name) => colour(name - 1)) } },
        tooltip: [{ field: "rank" }, { field: "cluster" }, { field: "silhouette", format: ".3f" }],
      },
    };
  }

  const clustersOf = (values) => [...new Set(values.map((one) => one.cluster))].sort((a, b) => a - b);

  function map(patches, explained, width) {
    const names = clustersOf(patches);
    const ends = ["x", "y"].map((field) => patches.map((patch) => patch[field])).map((values) => [Math.min(...values), Math.max(...values)]);
    const half = 0.54 * Math.max(...ends.map(([low, high]) => high - low)) || 1; // one scale for both: distances can be compared
    const axis = (field, i) => ({ field, type: "quantitative", title: `axis ${i + 1} (${Math.round(100 * explained[i])} % of variance)`, axis: { labels: false, ticks: false },
      scale: { domain: [(ends[i][0] + ends[i][1]) / 2 - half, (ends[i][0] + ends[i][1]) / 2 + half], nice: false, zero: false } });
    const side = Math.max(120, Math.min(width - 110, 300));
    return {
      width: side, height: side, data: { values: patches },
      mark: { type: "point", filled: true, size: 45, opacity: 0.8 },
      encoding: {
        x: axis("x", 0), y: axis("y", 1),
        color: { field: "cluster", type: "nominal", title: "cluster", scale: { domain: names, range: names.map((name) => colour(name - 1)) } },
        shape: { field: "cluster", type: "nominal", title: "cluster", scale: { domain: names } },
        // not titled "image": Vega would show what such a field names
        tooltip: [{ field: "rank" }, { field: "cluster" }, { field: "label", title: "class" }, { field: "image", title: "image name" }],
      },
    };
  }

  function activations({ band, ...histogram }, width) {
    const values = bins(histogram);
    const domain = reach(values, band);
    return {
      width, height: 130, autosize: fit,
      layer: [
        { data: { values: [{ from: band[0], to: band[1] }] }, mark: { type: "rect", color: colours()[1], opacity: 0.25, tooltip: true },
          encoding: { x: { field: "from", type: "quantitative" }, x2: { field: "to" } } },
        { data: { values }, mark: { type: "bar", color: colours()[0], binSpacing: 0, tooltip: true },
          encoding: { x: { field: "from", type: "quantitative", bin: { binned: true }, title: "largest activation in an image", scale: { domain, nice: false, zero: false } }, x2: { field: "to" },
            y: { field: "count", type: "quantitative", title: "images", axis: { tickMinStep: 1, format: "d" } } } },
      ],
    };
  }

  function swaps(values, width) {
    return {
      width, height: Math.max(60, values.length * 30), autosize: fit, data: { values },
      encoding: { y: { field: "condition", type: "nominal", sort: null, title: null, axis: { labelLimit: 220 } },
        x: { field: "value", type: "quantitative", title: "change of the activation (standard deviations)" } },
      layer: [
        { mark: { type: "bar", color: colours()[0], tooltip: true } },
        { mark: { type: "rule", strokeWidth: 2 }, encoding: { x: { field: "low", type: "quantitative" }, x2: { field: "high" } } },
      ],
    };
  }

  function ranks(values, names, width) {
    const axis = (field, title) => ({ field, type: "quantitative", title, scale: { zero: false, nice: false } });
    const side = Math.min(width, 480);
    return {
      width: side, height: side * 0.8, autosize: fit, data: { values },
      mark: { type: "point", filled: true, size: 18, opacity: 0.5, color: colours()[0] },
      encoding: { x: axis("a", `rank in ${names[0]} (1: most polysemantic)`), y: axis("b", `rank in ${names[1]}`),
        tooltip: [{ field: "channel" }, { field: "a", title: `rank in ${names[0]}` }, { field: "b", title: `rank in ${names[1]}` }] },
    };
  }

  return { draw, baselines, components, layers, bars, nulls, silhouettes, map, activations, swaps, ranks };
})();
