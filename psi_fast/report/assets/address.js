"use strict";
// Addresses behind the #: overview, channels?search=..., layer4/1234, experiments/NAME, compare?a=...&b=...
psiFast.address = (() => {
  const encode = (text) => encodeURIComponent(text).replaceAll("%2F", "/");

  function channel(layer, number) {
    return `#${encode(layer.key)}/${number}`;
  }

  function page(name, values = {}) {
    const query = new URLSearchParams(Object.entries(values).filter(([, value]) => value !== "" && value !== null && value !== undefined));
    return `#${name}${query.size ? `?${query}` : ""}`;
  }

  function decode(text) {
    try {
      return decodeURIComponent(text);
    } catch {
      return text; // a % that begins no code
    }
  }

  // {layer, channel} of a channel's address, else {page, rest, query}.
  function read() {
    const text = location.hash.slice(1);
    const found = /^(.+)\/(\d+)$/.exec(text);
    if (found) return { layer: decode(found[1]), channel: Number(found[2]) };
    const [path, query] = text.split("?", 2);
    const [name, ...rest] = path.split("/");
    return { page: name || "overview", rest: decode(rest.join("/")), query: new URLSearchParams(query || "") };
  }

  return { channel, page, read };
})();
