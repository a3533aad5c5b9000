// Prometheus' text format, as /metrics writes it.

/** Return the series of a text: name, labels and value of each. */
export function parseMetrics(text) {
  const found = [];
  for (const line of text.split("\n")) {
    const match = /^([A-Za-z_:][\w:]*)(?:\{(.*)\})? (\S+)$/.exec(line);
    if (!match) continue;
    const labels = {};
    for (const [, name, value] of (match[2] ?? "").matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)) {
      labels[name] = value.replace(/\\(.)/g, (_, character) => (character === "n" ? "\n" : character));
    }
    found.push({ name: match[1], labels, value: match[3] === "+Inf" ? Infinity : Number(match[3]) });
  }
  return found;
}

/** Return the sum of the series of a name whose labels are these. */
export function total(series, name, labels = {}) {
  return matching(series, name, labels).reduce((sum, { value }) => sum + value, 0);
}

/** Return the series of a name whose labels are these. */
export function matching(series, name, labels = {}) {
  return series.filter((each) => each.name === name && Object.entries(labels).every(([key, value]) => each.labels[key] === value));
}

/** Return the counts between the edges of a histogram, summed over its series. */
export function buckets(series, name, labels = {}) {
  const upTo = new Map();
  for (const { labels: own, value } of matching(series, `${name}_bucket`, labels)) {
    const edge = own.le === "+Inf" ? Infinity : Number(own.le);
    upTo.set(edge, (upTo.get(edge) ?? 0) + value);
  }
  const edges = [...upTo.keys()].sort((a, b) => a - b);
  const counts = edges.map((edge, i) => upTo.get(edge) - (i ? upTo.get(edges[i - 1]) : 0));
  return { edges, counts };
}

/** Return the counts of a histogram of probabilities by tenths; its buckets above 0.9, which are narrower, fill the last one. */
export function tenths({ edges, counts }) {
  const found = new Array(10).fill(0);
  edges.forEach((edge, i) => { found[Math.min(9, Math.ceil(edge * 10 - 1e-9) - 1)] += counts[i]; });
  return found;
}

/** Return the smallest edge below which a share of a histogram lies, or null without values. */
export function quantile({ edges, counts }, share) {
  const all = counts.reduce((sum, count) => sum + count, 0);
  if (all === 0) return null;
  let below = 0;
  for (let i = 0; i < edges.length; i++) {
    below += counts[i];
    if (below >= share * all) return edges[i];
  }
  return null;
}
