"use strict";
// From the address to the page.
(() => {
  const { load, address } = psiFast;
  const PAGES = ["overview", "channels", "channel", "experiments", "compare"];
  const place = (id) => document.getElementById(id);

  let shown = null; // what the reader was at, a page or a channel

  // Show a page; one that the reader comes to begins at its top, and is told to those who hear it.
  function open(name, what = name) {
    for (const page of PAGES) {
      const own = place(page);
      if (own) own.hidden = page !== name;
    }
    for (const link of document.querySelectorAll("nav a")) {
      if (link.dataset.page === (name === "channel" ? "channels" : name)) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
    if (shown !== null && shown !== what) {
      window.scrollTo(0, 0);
      place(name).querySelector("h1").focus({ preventScroll: true });
    }
    shown = what;
  }

  function fail(error) {
    place("problem").hidden = false;
    place("problem").textContent = error.message;
  }

  async function route() {
    const hash = location.hash;
    psiFast.channel.close();
    place("problem").hidden = true;
    try {
      const [index, table] = await Promise.all([load("index"), load("table")]);
      const asked = address.read();
      if (asked.layer !== undefined) await channel(index, table, asked);
      else if (!PAGES.includes(asked.page) || !place(asked.page) || asked.page === "channel") throw new Error(`There is no page "${asked.page}" in this report.`);
      else {
        open(asked.page);
        document.title = `${asked.page} – psi_fast`;
        if (asked.page === "overview") await psiFast.overview.show(index, table);
        if (asked.page === "channels") psiFast.table.show(index, table, asked.query);
        if (asked.page === "compare") await psiFast.compare.show(index, table, asked.query);
        psiFast.opened();
        if (asked.page === "experiments" && asked.rest) place(`experiment-${asked.rest}`)?.scrollIntoView();
      }
    } catch (error) {
      fail(error);
    }
    if (hash === location.hash) document.documentElement.dataset.ready = hash || "#"; // else the reader went on meanwhile
  }

  async function channel(index, table, asked) {
    const layer = index.layers.find((one) => one.key === asked.layer);
    const row = layer ? table.channel.indexOf(asked.channel, layer.first) : -1;
    if (!layer || row < 0 || row >= layer.first + layer.channels) throw new Error(`There is no channel ${asked.layer}/${asked.channel} in this report.`);
    open("channel", `${asked.layer}/${asked.channel}`);
    document.title = `${layer.key}/${asked.channel} – psi_fast`;
    await psiFast.channel.show(index, table, row);
  }

  // The field that searches, with the filters as they are where its page is open already.
  async function search() {
    if (place("channels").hidden) {
      history.pushState(null, "", address.page("channels"));
      await route();
    }
    place("filter-search").focus();
  }

  // Arrow keys: the next and the previous channel, unless a field wants them.
  function key(event) {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    if (event.key === "Escape") psiFast.channel.close();
    if (event.target.closest("input, select, textarea")) return;
    if (event.key === "/") {
      event.preventDefault();
      search();
    }
    if (place("channel").hidden || event.shiftKey) return;
    if (event.key === "ArrowLeft") psiFast.channel.step(-1);
    if (event.key === "ArrowRight") psiFast.channel.step(1);
  }

  async function start() {
    psiFast.theme.label();
    place("theme").addEventListener("click", psiFast.theme.toggle);
    place("skip").addEventListener("click", () => document.querySelector("main").focus());
    psiFast.route = route;
    try {
      const index = await load("index");
      psiFast.table.build(index);
      if (place("compare")) psiFast.compare.build(index);
    } catch (error) {
      fail(error);
      return;
    }
    window.addEventListener("hashchange", route);
    window.addEventListener("keydown", key);
    await route();
  }

  start();
})();
