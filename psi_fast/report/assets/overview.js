"use strict";
// The first page: how PSI lies against its baselines, how its components relate, which channels stand out.
psiFast.overview = (() => {
  const { element, number, logOdds, spread, charts, address } = psiFast;
  const TOP = 8;

  function show(index, table) {
    const select = document.getElementById("overview-layer");
    if (!select.options.length) {
      index.layers.forEach((layer, i) => select.append(element("option", { value: i }, layer.key)));
      select.addEventListener("change", () => draw(index, table, Number(select.value)));
      select.closest("label").hidden = index.layers.length < 2;
    }
    return draw(index, table, Number(select.value));
  }

  async function draw(index, table, number_) {
    const layer = index.layers[number_];
    if (!layer) return;
    const rows = Array.from({ length: layer.channels }, (_, i) => layer.first + i);
    tiles(index, table, layer, rows);
    top(index, table, layer, rows);
    psiFast.opened();
    const place = (id) => document.getElementById(id);
    for (const [id, name, axis] of [["chart-log-psi", "log_psi", "ln PSI"], ["chart-log-odds", "log_odds", "log10 of PSI / (1 - PSI)"]]) {
      await charts.draw(place(id), (width) => charts.baselines(layer[name], axis, width),
        `Histogram of ${axis} of ${layer.key}: its channels, the null draws and random-patch channels`);
    }
    const parts = [...layer.components];
    if (parts.length > 1) {
      const values = rows.filter((row) => table.psi[row] !== null).map((row) => ({
        key: `${layer.key}/${table.channel[row]}`,
        ...Object.fromEntries(parts.map((part) => [part, table[`${part}_hat`][row]])) }));
      await charts.draw(place("chart-components"), (width) => charts.components(values, parts, width),
        `Calibrated components of the channels of ${layer.key} against each other`, "canvas");
    } else {
      place("chart-components").replaceChildren(element("p", { class: "soft" }, "PSI is made of one component alone in this run."));
    }
    const order = index.layers.map((one) => one.key);
    const spreads = index.layers.map((one) => spread(table, one));
    await charts.draw(place("chart-layers"), (width) => charts.layers(spreads, order, width),
      `Odds of PSI by layer, median of log10: ${spreads.map((one) => `${one.layer} ${number(one.p50, 1)}`).join(", ")}`);
    const counts = index.flags.map((name, bit) => ({ name, value: rows.filter((row) => table.flags[row] & (1 << bit)).length }));
    const none = rows.filter((row) => table.flags[row] === 0).length;
    const flags = [...counts, { name: "no flag", value: none }].map((one) => ({ ...one, said: String(one.value) }));
    await charts.draw(place("chart-flags"), (width) => charts.bars(flags, "channels", width), `Channels of ${layer.key} by flag: ${flags.map((one) => `${one.name} ${one.said}`).join(", ")}`);
    const seconds = Object.entries(index.runs[layer.run].seconds).map(([name, value]) => ({ name, value, said: `${value.toFixed(1)} s` }));
    await charts.draw(place("chart-seconds"), (width) => charts.bars(seconds, "seconds", width),
      `Time of each stage of the run ${index.runs[layer.run].name}: ${seconds.map((one) => `${one.name} ${one.said}`).join(", ")}`);
  }

  function tiles(index, table, layer, rows) {
    const scored = rows.filter((row) => table.psi[row] !== null);
    const count = (test) => scored.filter(test).length;
    const facts = [
      [rows.length, "channels"],
      [count((row) => table.q[row] < 0.05), "significant (q < .05)"],
      [count((row) => table.random_percentile[row] > 95), "above 95 % of random-patch channels"],
      [number(1 / (1 + 10 ** -spread(table, layer).p50), 3), "median PSI"],
      [index.runs[layer.run].images, "images"],
    ];
    document.getElementById("overview-facts").replaceChildren(
      ...facts.map(([value, name]) => element("div", { class: "fact" }, element("b", {}, String(value)), element("span", {}, name))));
  }

  function top(index, table, layer, rows) {
    const best = rows.filter((row) => table.log_psi[row] !== null)
      .sort((a, b) => table.log_psi[b] - table.log_psi[a]).slice(0, TOP);
    document.getElementById("overview-top").replaceChildren(...best.map((row) => card(index, table, row)));
  }

  // A channel in a few square centimetres: its strip, its concepts, its PSI.
  function card(index, table, row, said = `PSI ${number(table.psi[row], 3)}, odds 10^${number(logOdds(table.log_psi[row]), 1)}`) {
    const layer = index.layers[table.layer[row]];
    return element("a", { class: "card", href: address.channel(layer, table.channel[row]) },
      psiFast.strip(index, table, row),
      element("b", {}, `${layer.key}/${table.channel[row]}`), " ",
      element("span", { class: "soft" }, said),
      element("span", { class: "names" }, psiFast.conceptNames(index, table, row).join(" · ")));
  }

  return { show, card };
})();
