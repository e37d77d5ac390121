"use strict";
// Two layers side by side: how the ranks of the same channels agree, and which move most.
psiFast.compare = (() => {
  const { element, number, spread, charts, address } = psiFast;
  const MOVERS = 12;
  const place = (id) => document.getElementById(id);

  function build(index) {
    for (const side of ["a", "b"]) {
      index.layers.forEach((layer, i) => place(`compare-${side}`).append(element("option", { value: i }, layer.key)));
      place(`compare-${side}`).addEventListener("change", () => (location.hash = address.page("compare", { a: place("compare-a").value, b: place("compare-b").value })));
    }
  }

  // The layer that is read in another run as well, else the second one.
  function partner(index, a) {
    const same = index.layers.findIndex((layer, i) => i !== a && layer.layer === index.layers[a].layer && layer.run !== index.layers[a].run);
    return same >= 0 ? same : a === 0 ? 1 : 0;
  }

  async function show(index, table, query) {
    const known = (name, fallback) => (index.layers[Number(query.get(name) ?? -1)] ? Number(query.get(name)) : fallback);
    const a = known("a", 0);
    const b = known("b", partner(index, a));
    place("compare-a").value = a;
    place("compare-b").value = b;
    const layers = [index.layers[a], index.layers[b]];
    const names = layers.map((layer) => layer.key);
    const shared = matched(table, layers);
    const comparable = layers[0].layer === layers[1].layer && index.runs[layers[0].run].network === index.runs[layers[1].run].network;
    place("compare-note").textContent = comparable
      ? `${shared.length} channels with a score in both.`
      : "These are different layers or networks: channel 7 of one is not channel 7 of the other, so only the distributions can be compared.";
    place("compare-ranks").hidden = place("compare-movers").hidden = !comparable || !shared.length;
    if (!place("compare-ranks").hidden) {
      const ranked = [rank(table, shared.map((one) => one[0])), rank(table, shared.map((one) => one[1]))];
      const values = shared.map(([row], i) => ({ channel: table.channel[row], a: ranked[0][i], b: ranked[1][i] }));
      place("compare-rho").textContent = `Spearman's rank correlation of PSI: ${number(correlation(...ranked), 3)}`;
      await charts.draw(place("chart-ranks"), (width) => charts.ranks(values, names, width), `Ranks of the channels in ${names[0]} and in ${names[1]}`, "canvas");
      movers(index, table, shared, ranked);
    }
    await charts.draw(place("chart-compare"), (width) => charts.layers(layers.map((layer) => spread(table, layer)), names, width), `Odds of PSI of ${names.join(" and ")}`);
  }

  function matched(table, [first, second]) {
    const rows = new Map();
    for (let row = second.first; row < second.first + second.channels; row += 1) rows.set(table.channel[row], row);
    const found = [];
    for (let row = first.first; row < first.first + first.channels; row += 1) {
      const other = rows.get(table.channel[row]);
      if (other !== undefined && table.log_psi[row] !== null && table.log_psi[other] !== null) found.push([row, other]);
    }
    return found;
  }

  // Ranks by descending PSI from 1 on; equal ones share the mean of theirs.
  function rank(table, rows) {
    const order = rows.map((row, i) => [table.log_psi[row], i]).sort((a, b) => b[0] - a[0]);
    const ranks = new Array(rows.length);
    for (let i = 0; i < order.length; ) {
      let end = i;
      while (end < order.length && order[end][0] === order[i][0]) end += 1;
      for (let j = i; j < end; j += 1) ranks[order[j][1]] = (i + end + 1) / 2;
      i = end;
    }
    return ranks;
  }

  function correlation(a, b) {
    if (a.length < 3) return null;
    const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
    const [ma, mb] = [mean(a), mean(b)];
    let [ab, aa, bb] = [0, 0, 0];
    a.forEach((value, i) => {
      ab += (value - ma) * (b[i] - mb);
      aa += (value - ma) ** 2;
      bb += (b[i] - mb) ** 2;
    });
    return aa && bb ? ab / Math.sqrt(aa * bb) : null;
  }

  function movers(index, table, shared, [a, b]) {
    const order = shared.map((_, i) => i).sort((i, j) => Math.abs(b[j] - a[j]) - Math.abs(b[i] - a[i])).slice(0, MOVERS);
    place("compare-rows").replaceChildren(...order.map((i) => element("tr", {}, ...shared[i].map((row, side) => element("td", { class: "mover" },
      psiFast.overview.card(index, table, row, `rank ${[a, b][side][i]}, PSI ${number(table.psi[row], 3)}`))))));
  }

  return { build, show };
})();
