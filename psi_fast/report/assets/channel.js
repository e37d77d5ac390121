"use strict";
// One channel: its clusters as rows of patches, and all that its score is made of.
psiFast.channel = (() => {
  const { element, number, short, probability, colour, tile, numbered, part, address, charts, load } = psiFast;
  const FIRST = 24; // patches of a cluster shown before one asks for all
  const NAMES = { S: "separation", Q: "agreement with classes", D: "distinctness of concepts" };
  const place = (id) => document.getElementById(id);
  let current = null; // {index, table, row}: what the keys move from

  async function show(index, table, row) {
    current = { index, table, row };
    const layer = index.layers[table.layer[row]];
    const shard = part(layer.shards, row - layer.first);
    const held = await load(`${layer.folder}/channels-${numbered(shard)}`);
    if (current.row !== row) return; // the reader went on meanwhile
    const own = held.channels[row - layer.first - held.first];
    const about = { index, table, row, layer, held, own };
    if (layer.patches) about.sheet = `data/${layer.folder}/patches-${numbered(part(layer.patches.firsts, row - layer.first))}.webp`;
    head(about);
    facts(about);
    place("channel-clusters").replaceChildren(...clusters(about));
    paint();
    neighbours(about);
    psiFast.opened();
    await graphs(about);
  }

  function head({ index, table, row, layer }) {
    place("channel-name").textContent = `${layer.key}/${table.channel[row]}`;
    const { before, after, place: at, count } = psiFast.table.around(table, row);
    link("channel-before", index, table, before);
    link("channel-after", index, table, after);
    place("channel-place").textContent = `${at + 1} of ${count}`;
  }

  function link(id, index, table, row) {
    const own = place(id);
    if (row === undefined) {
      own.removeAttribute("href");
      own.setAttribute("aria-disabled", "true");
    } else {
      own.href = address.channel(index.layers[table.layer[row]], table.channel[row]);
      own.removeAttribute("aria-disabled");
    }
  }

  function facts({ index, table, row, layer }) {
    const value = (name) => table[name][row];
    const shown = [
      [number(value("psi"), 4), "PSI"], [probability(value("q")), "q (p corrected over the layer)"], [number(value("k"), 0), "clusters"],
      ...[...layer.components].map((name) => [number(value(`${name}_z`), 1), `${name} z`]),
      [number(value("random_percentile"), 0), "% of random-patch channels at or below"],
      [short(value("selectivity")), "selectivity (sd)"], [short(value("max_activation")), "largest activation (network's unit)"],
    ];
    place("channel-facts").replaceChildren(
      ...shown.map(([said, name]) => element("div", { class: "fact" }, element("b", {}, said), element("span", {}, name))));
    const flags = psiFast.flagsOf(index, table, row);
    place("channel-flags").replaceChildren(...flags.map((name) => element("span", { class: "flag", title: index.flag_notes[name] || null }, name)));
  }

  // By cluster, the places of its patches in the order of their rank; one row for a channel without clusters.
  function members(own) {
    const rows = own.clusters.map(() => []);
    const loose = [];
    own.patches.cluster.forEach((cluster, i) => (cluster < 0 ? loose : rows[cluster]).push(i));
    return loose.length ? [...rows, loose] : rows;
  }

  function clusters(about) {
    const { own } = about;
    const made = members(own).map((places, number_) => {
      const cluster = own.clusters[number_];
      const row = element("div", { class: "patches" }, ...places.slice(0, FIRST).map((i, at) => patch(about, i, at === 0)));
      const all = places.length > FIRST && element("button", { type: "button", class: "all", onclick: (event) => {
        row.append(...places.slice(FIRST).map((i) => patch(about, i)));
        event.target.remove();
        row.children[FIRST].focus();
      } }, `Show all ${places.length}`);
      return element("section", { class: "cluster", "data-cluster": cluster ? number_ : -1 },
        element("h3", {}, cluster ? `Cluster ${number_ + 1}` : "Patches without a cluster", element("span", { class: "soft" }, ` ${places.length} patches`)),
        cluster && says(cluster), row, all || null);
    });
    return made.length ? made : [element("p", { class: "soft" }, "This channel has no patches: its activation is the same everywhere.")];
  }

  // Clusters have the colours of the charts, which depend on the page's.
  function paint() {
    for (const own of document.querySelectorAll(".cluster")) own.style.setProperty("--own", colour(Number(own.dataset.cluster)));
  }
  psiFast.theme.onChange(paint);

  function says({ size, concepts, classes }) {
    const list = (title, rows, say) => rows.length && element("div", {}, element("h4", {}, title),
      element("ul", { class: "meters" }, ...rows.map(([name, value]) => element("li", {},
        element("span", { class: "meter" }, element("i", { style: { width: `${Math.max(0, Math.min(100, 100 * say.share(value)))}%` } })),
        element("span", { class: "value" }, say.text(value)), element("span", { class: "name", title: name }, name)))));
    return element("div", { class: "says" },
      list("Nearest concepts (cosine)", concepts, { share: (value) => value, text: (value) => value.toFixed(2) }) || null,
      list("Classes (patches)", classes, { share: (value) => value / size, text: String }) || null);
  }

  function patch(about, i, first = false) {
    const { layer, held, own, sheet } = about;
    const { patches } = own;
    const name = held.images[patches.image[i]];
    const label = patches.label[i] < 0 ? null : held.labels[patches.label[i]];
    const side = Math.min(Math.max(layer.patches?.tile ?? 0, 64), innerWidth < 500 ? 60 : 84);
    const made = element("button", { type: "button", class: "patch", tabindex: first ? 0 : -1, "aria-describedby": "hover",
      "aria-label": `patch ${i + 1}, activation ${short(patches.activation[i])}${label === null ? "" : `, class ${label}`}, image ${name}` });
    const open = () => hover(about, i, made, name, label);
    made.addEventListener("mouseenter", open);
    made.addEventListener("focus", open);
    made.addEventListener("click", open);
    made.addEventListener("mouseleave", close);
    made.addEventListener("blur", close);
    made.addEventListener("keydown", walk);
    if (!sheet) {
      made.classList.add("unseen");
      made.append(String(i + 1));
      return made;
    }
    return tile(made, sheet, patches.tile[i], layer.patches.columns, side);
  }

  // One stop for the tab key in each row of patches; within it the arrows lead on.
  function walk(event) {
    const to = { ArrowLeft: "previousElementSibling", ArrowRight: "nextElementSibling" }[event.key];
    if (!to) return;
    event.stopPropagation();
    event.target[to]?.focus();
  }

  // The patch in its image: the whole image with the patch outlined.
  function hover({ index, layer, own }, i, anchor, name, label) {
    const box = place("hover");
    const { patches } = own;
    const run = index.runs[layer.run];
    const parts = [];
    if (run.whole) {
      const { firsts, columns } = run.whole;
      const image = patches.whole[i];
      const sheet = part(firsts, image);
      const whole = tile(element("div", { class: "whole" }), `data/${run.folder}/images-${numbered(sheet)}.webp`,
        image - firsts[sheet], columns, Math.min(260, 2 * run.whole.tile));
      const [x0, y0, x1, y1] = patches.box[i].map((edge) => `${100 * edge}%`);
      whole.append(element("div", { class: "outline", style: { left: x0, top: y0, width: `calc(${x1} - ${x0})`, height: `calc(${y1} - ${y0})` } }));
      parts.push(whole);
    }
    parts.push(element("dl", {}, ...[["rank", String(i + 1)], ["activation", short(patches.activation[i])], ["class", label],
      ["silhouette", number(patches.silhouette[i], 2)], ["image", name]].filter(([, value]) => value !== null)
      .flatMap(([title, value]) => [element("dt", {}, title), element("dd", {}, value)])));
    box.replaceChildren(...parts);
    box.hidden = false;
    const at = anchor.getBoundingClientRect();
    const left = Math.max(8, Math.min(at.left, innerWidth - box.offsetWidth - 8));
    const below = at.bottom + 6;
    const top = below + box.offsetHeight > innerHeight ? Math.max(8, at.top - box.offsetHeight - 6) : below;
    Object.assign(box.style, { left: `${left}px`, top: `${top}px` });
  }

  const close = () => (place("hover").hidden = true);

  function neighbours({ index, table, row, own }) {
    const cards = (rows, say) => (rows.length ? rows.map((found) => psiFast.overview.card(index, table, found[0], say(found))) : [element("p", { class: "soft" }, "none")]);
    place("neighbours-patches").replaceChildren(...cards(own.neighbours.patches,
      ([, shared]) => `${shared} of ${own.patches.image.length} patches`));
    place("neighbours-concepts").replaceChildren(...cards(own.neighbours.concepts, ([, share]) => `${Math.round(100 * share)} % of the patches`));
  }

  async function graphs({ table, row, layer, held, own }) {
    const name = `${layer.key}/${table.channel[row]}`;
    const { patches } = own;
    const points = patches.cluster.map((cluster, i) => ({ rank: i + 1, cluster: cluster + 1, silhouette: patches.silhouette[i], x: patches.x[i], y: patches.y[i],
      label: patches.label[i] < 0 ? "" : held.labels[patches.label[i]], image: held.images[patches.image[i]] }));
    const scored = points.filter((point) => point.silhouette !== null);
    const wanted = [];
    for (const [component, null_] of Object.entries(own.nulls)) {
      const level = short(Math.abs(null_.mean) < 1e-9 ? 0 : null_.mean);
      wanted.push([`${component}: ${NAMES[component]}`, null_.varies && ((width) => charts.nulls(component, null_, width)),
        `Null draws of ${component} of ${name} and the observed value ${short(null_.observed)}`,
        null_.varies
          ? `observed ${short(null_.observed)}, null ${short(null_.mean)} ± ${short(null_.sd)}: z ${number(null_.z, 1)}, p ${probability(null_.p)}`
          : `Every null draw gives ${level}: a null that does not vary says nothing about this channel.`]);
    }
    if (scored.length) {
      const ordered = [...scored].sort((a, b) => a.cluster - b.cluster || b.silhouette - a.silhouette);
      wanted.push(["Silhouettes", (width) => charts.silhouettes(ordered, width), `Silhouette of each patch of ${name}, by cluster; mean ${short(ordered.reduce((sum, one) => sum + one.silhouette, 0) / ordered.length)}`,
        "1: well inside its cluster, 0: between two, below: nearer to another"]);
      wanted.push(["Map of the patches", (width) => charts.map(scored, own.explained, width), `Patches of ${name} on their first two principal axes`,
        "first two principal axes of the embeddings; near patches look alike to the encoder"]);
    }
    if (own.activations) wanted.push(["Activations", (width) => charts.activations(own.activations, width), `Histogram of the largest activations of ${name} in the images, ${short(own.activations.low)} to ${short(own.activations.high)}; its patches lie from ${short(own.activations.band[0])} to ${short(own.activations.band[1])}`,
      "a sample of all images; shaded: the band of this channel's patches"]);
    if (own.swaps) wanted.push(["Patch swap", (width) => charts.swaps(own.swaps, width), `Effect of swapped patches on ${name}: ${own.swaps?.map((one) => `${one.condition} ${short(one.value)}`).join(", ")}`, "what a patch of one cluster does in the place of another; lines: 95 % intervals"]);
    const figures = wanted.map(([title, , , said]) => element("figure", { class: "chart" }, element("figcaption", {}, title), element("div", { class: "plot" }), element("p", { class: "soft" }, said)));
    place("channel-charts").replaceChildren(...figures);
    for (const [i, [, make, about]] of wanted.entries()) {
      if (current.row !== row) return;
      if (make) await charts.draw(figures[i].querySelector(".plot"), make, about);
    }
  }

  function step(direction) {
    const own = place(direction < 0 ? "channel-before" : "channel-after");
    if (own.hasAttribute("href")) location.hash = own.getAttribute("href");
  }

  return { show, step, close };
})();
