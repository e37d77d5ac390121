"use strict";
// All channels: searched, filtered, sorted, a page at a time; what is chosen stands in the address.
psiFast.table = (() => {
  const { element, number, probability, flagsOf, logOdds, tile, numbered, part, address } = psiFast;
  const PAGE = 50;
  const NUMBERS = ["psi", "log_psi", "p", "q", "k", "S_z", "Q_z", "D_z", "random_percentile", "max_activation", "selectivity"];
  let shown = []; // rows that the filters let through, in order

  let columns = []; // those of COLUMNS that the report's runs have

  const COLUMNS = [
    { name: "channel", title: "channel", text: true },
    { name: "psi", title: "PSI", about: "Polysemanticity Index, 0 to 1; sorted by its logarithm, which tells equal ones apart", say: (v) => number(v, 4), sort: "log_psi" },
    { name: "log_odds", title: "odds", about: "log10 of PSI / (1 - PSI)", say: (v) => number(v, 1) },
    { name: "k", title: "k", about: "number of clusters", say: (v) => number(v, 0) },
    { name: "S_z", title: "S z", about: "separation of the clusters, in standard deviations above its null", say: (v) => number(v, 1) },
    { name: "Q_z", title: "Q z", about: "agreement with class labels, in standard deviations above its null", say: (v) => number(v, 1) },
    { name: "D_z", title: "D z", about: "distinctness of the concepts, in standard deviations above its null", say: (v) => number(v, 1) },
    { name: "q", title: "q", about: "p corrected over the layer's channels", say: probability },
    { name: "random_percentile", title: "random %", about: "share of random-patch channels with a PSI at or below it", say: (v) => number(v, 0) },
  ];

  // One small picture a cluster, with a name for those who cannot see it.
  psiFast.strip = (index, table, row) => {
    const layer = index.layers[table.layer[row]];
    const strip = layer.strip;
    const names = psiFast.conceptNames(index, table, row);
    const made = element("span", { class: "strip", role: "img", "aria-label": `one patch of each cluster: ${names.join(", ") || "none"}` });
    if (!strip) return made;
    const shard = part(strip.firsts, row - layer.first);
    const sheet = `data/${layer.folder}/strip-${numbered(shard)}.webp`;
    table.strip[row].forEach((place, i) => made.append(tile(element("span", { title: names[i] || null }), sheet, place, strip.columns, strip.tile)));
    return made;
  };

  psiFast.conceptNames = (index, table, row) => {
    const names = table.concepts[row].map((id) => index.concepts[id]);
    return names.length ? names : table.sizes[row].map((_, i) => `cluster ${i + 1}`);
  };

  const field = (name) => document.getElementById(`filter-${name}`);
  const FIELDS = ["search", "layer", "flag", "k", "significant", "random", "sort", "order"];

  function build(index) {
    index.layers.forEach((layer, i) => field("layer").append(element("option", { value: i }, layer.key)));
    field("layer").closest("label").hidden = index.layers.length < 2;
    index.flags.forEach((name, bit) => field("flag").append(element("option", { value: bit }, name)));
    const head = document.querySelector("#channels thead tr");
    columns = COLUMNS.filter(({ name }) => !/^[SQD]_z$/.test(name) || index.layers.some((layer) => layer.components.includes(name[0])));
    for (const option of [...field("sort").options]) {
      if (/^[SQD]_z$/.test(option.value) && !columns.some((column) => column.name === option.value)) option.remove();
    }
    for (const column of columns) {
      const button = element("button", { type: "button", title: column.about || null, onclick: () => sortBy(column) }, column.title);
      head.append(element("th", { scope: "col", "data-column": column.name, class: column.text ? null : "number" }, button));
    }
    head.append(element("th", { scope: "col" }, "clusters: concept (patches)"), element("th", { scope: "col" }, "flags"));
    field("search").form.addEventListener("submit", (event) => event.preventDefault());
    let typed = 0;
    field("search").addEventListener("input", () => {
      clearTimeout(typed);
      typed = setTimeout(go, 120);
    });
    for (const name of FIELDS.slice(1)) field(name).addEventListener("change", () => go());
    document.getElementById("filter-clear").addEventListener("click", () => (location.hash = address.page("channels")));
    document.getElementById("table-more").addEventListener("click", async () => more(index, await psiFast.load("table")));
    document.querySelector("#channels tbody").addEventListener("click", (event) => {
      if (event.target.closest("a")) history.replaceState({ rows: event.currentTarget.rows.length, top: window.scrollY }, "");
    }, true);
    document.getElementById("table-export").addEventListener("click", () => save(index));
  }

  function sortBy(column) {
    const key = column.sort || column.name;
    const same = field("sort").value === key;
    field("order").value = same && field("order").value === "down" ? "up" : same ? "down" : column.text || key === "q" ? "up" : "down";
    field("sort").value = key;
    go();
  }

  // The address of what the fields ask for; defaults are left out.
  function go() {
    const values = Object.fromEntries(FIELDS.map((name) => {
      const own = field(name);
      return [name, own.type === "checkbox" ? (own.checked ? "1" : "") : own.value];
    }));
    if (values.sort === "log_psi") values.sort = "";
    if (values.order === "down") values.order = "";
    const hash = address.page("channels", values);
    if (hash === location.hash) return;
    history.replaceState(null, "", hash);
    psiFast.route();
  }

  function show(index, table, query) {
    for (const name of FIELDS) {
      const own = field(name);
      const value = query.get(name) || { sort: "log_psi", order: "down" }[name] || "";
      if (own === document.activeElement && own.type === "search") continue;
      if (own.type === "checkbox") own.checked = value === "1";
      else own.value = value;
    }
    table.log_odds ??= table.log_psi.map(logOdds);
    shown = sorted(table, filtered(index, table, query), query.get("sort") || "log_psi", query.get("order") || "down");
    heads(query);
    document.getElementById("table-count").textContent =
      `${shown.length} of ${table.channel.length} channel${table.channel.length === 1 ? "" : "s"}`;
    document.querySelector("#channels tbody").replaceChildren();
    const left = history.state; // where the reader was before a channel was opened
    more(index, table, left?.rows);
    if (left?.rows) window.scrollTo(0, left.top);
  }

  function filtered(index, table, query) {
    const words = (query.get("search") || "").toLowerCase().split(/\s+/).filter(Boolean);
    const layer = query.get("layer");
    const flag = query.get("flag");
    const k = query.get("k");
    const random = query.get("random");
    const lower = index.concepts.map((name) => name.toLowerCase());
    return table.channel.map((_, row) => row).filter((row) => {
      if (layer && table.layer[row] !== Number(layer)) return false;
      if (flag === "none" ? table.flags[row] : flag && !(table.flags[row] & (1 << Number(flag)))) return false;
      if (k && table.k[row] !== Number(k)) return false;
      if (query.get("significant") === "1" && !(table.q[row] !== null && table.q[row] < 0.05)) return false;
      if (random && !(table.random_percentile[row] !== null && table.random_percentile[row] >= Number(random))) return false;
      if (!words.length) return true;
      const named = [`${index.layers[table.layer[row]].key}/${table.channel[row]}`.toLowerCase(), ...table.concepts[row].map((id) => lower[id])];
      const number = String(table.channel[row]); // in digits a channel's whole number, or a part of a name
      return words.every((word) => (/^\d+$/.test(word) ? word === number || named.slice(1).some((name) => name.includes(word)) : named.some((name) => name.includes(word))));
    });
  }

  function sorted(table, rows, name, order) {
    const sign = order === "up" ? 1 : -1;
    if (![...NUMBERS, "log_odds"].includes(name)) return order === "up" ? rows : rows.reverse();
    const values = table[name];
    return rows.sort((a, b) => {
      if (values[a] === null || values[b] === null) return (values[a] === null) - (values[b] === null) || a - b; // without a number: last
      return sign * (values[a] - values[b]) || a - b;
    });
  }

  function heads(query) {
    const by = query.get("sort") || "log_psi";
    for (const column of columns) {
      const head = document.querySelector(`#channels th[data-column="${column.name}"]`);
      if ((column.sort || column.name) === by) head.setAttribute("aria-sort", query.get("order") === "up" ? "ascending" : "descending");
      else head.removeAttribute("aria-sort");
    }
  }

  function more(index, table, count = PAGE) {
    const body = document.querySelector("#channels tbody");
    const begin = body.rows.length;
    body.append(...shown.slice(begin, begin + count).map((row) => line(index, table, row)));
    const left = shown.length - body.rows.length;
    const button = document.getElementById("table-more");
    button.hidden = left <= 0;
    button.textContent = `Show ${Math.min(PAGE, left)} more of ${left}`;
  }

  function line(index, table, row) {
    const layer = index.layers[table.layer[row]];
    const href = address.channel(layer, table.channel[row]);
    const names = psiFast.conceptNames(index, table, row);
    const flags = flagsOf(index, table, row);
    return element("tr", {},
      element("th", { scope: "row" }, element("a", { href }, index.layers.length > 1 ? `${layer.key}/${table.channel[row]}` : String(table.channel[row]))),
      ...columns.slice(1).map((column) => element("td", { class: "number", "data-title": column.title }, column.say(table[column.name][row]))),
      element("td", { class: "clusters" }, element("a", { href, tabindex: -1 }, psiFast.strip(index, table, row)),
        element("span", {}, names.map((name, i) => `${name} (${table.sizes[row][i]})`).join(" · "))),
      element("td", { class: "flags" }, ...flags.map((name) => element("span", { class: "flag" }, name))));
  }

  // What a spreadsheet would take for a formula begins with a quote: names come from data.
  const cell = (value) => {
    const text = value === null || value === undefined ? "" : String(value);
    const safe = typeof value === "string" && /^[=+\-@\t\r]/.test(text) ? `'${text}` : text;
    return /[",\n\r]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
  };

  function csv(index, table, rows) {
    const lines = [["run", "layer", "channel", ...NUMBERS, "cluster_sizes", "concepts", "flags"]];
    for (const row of rows) {
      const layer = index.layers[table.layer[row]];
      lines.push([index.runs[layer.run].name, layer.layer, table.channel[row], ...NUMBERS.map((name) => table[name]?.[row]),
        table.sizes[row].join(";"), table.concepts[row].map((id) => index.concepts[id]).join(";"),
        flagsOf(index, table, row).join(";")]);
    }
    return `${lines.map((one) => one.map(cell).join(",")).join("\r\n")}\r\n`;
  }

  async function save(index) {
    const blob = new Blob([csv(index, await psiFast.load("table"), shown)], { type: "text/csv" });
    const link = element("a", { href: URL.createObjectURL(blob), download: "channels.csv" });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }

  // The channels before and after one, in the order of the table where it is in it.
  function around(table, row) {
    const rows = shown.includes(row) ? shown : table.channel.map((_, i) => i);
    const place = rows.indexOf(row);
    return { before: rows[place - 1], after: rows[place + 1], place, count: rows.length };
  }

  return { build, show, around };
})();
