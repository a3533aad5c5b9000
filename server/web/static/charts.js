// Charts as SVG, each with its numbers in a table below for those who do not see it.

import { h, number, svg, tableOf } from "./dom.js";

const [WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM] = [420, 280, 60, 24, 12, 42];

/** Return a plane with axes: its element, and functions from values to places. */
export function plane({ x, y, xTitle, yTitle, xTicks, yTicks, label, tickText = (value) => String(value) }) {
  const px = (value) => LEFT + ((value - x[0]) / (x[1] - x[0])) * (WIDTH - LEFT - RIGHT);
  const py = (value) => HEIGHT - BOTTOM - ((value - y[0]) / (y[1] - y[0])) * (HEIGHT - TOP - BOTTOM);
  const element = svg("svg", { class: "chart", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": label },
    yTicks.map((tick) => [
      svg("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: py(tick), y2: py(tick) }),
      svg("text", { x: LEFT - 7, y: py(tick) + 4, "text-anchor": "end" }, tickText(tick)),
    ]),
    xTicks.map((tick) => svg("text", { x: px(tick), y: HEIGHT - BOTTOM + 17, "text-anchor": "middle" }, tickText(tick))),
    svg("line", { class: "axis", x1: LEFT, x2: WIDTH - RIGHT, y1: py(y[0]), y2: py(y[0]) }),
    svg("text", { class: "title", x: (LEFT + WIDTH - RIGHT) / 2, y: HEIGHT - 6, "text-anchor": "middle" }, xTitle),
    svg("text", { class: "title", x: 0, y: 0, "text-anchor": "middle", transform: `translate(12 ${(TOP + HEIGHT - BOTTOM) / 2}) rotate(-90)` }, yTitle));
  return { element, px, py };
}

/** Return a path through points, which are pairs of values. */
export function path(points, { px, py }, attributes) {
  const steps = points.map(([a, b], i) => `${i ? "L" : "M"}${px(a).toFixed(1)} ${py(b).toFixed(1)}`);
  return svg("path", { d: steps.join(""), ...attributes });
}

/** Return a figure of a chart with its caption and its numbers. */
export function figure(title, caption, chart, heads, rows) {
  return h("figure", { class: "panel" },
    h("h3", {}, title),
    chart,
    h("figcaption", { class: "hint" }, caption),
    h("details", {}, h("summary", {}, "The numbers"), numbersOf(title, heads, rows)));
}

/** Return a table of a chart's numbers. */
export function numbersOf(title, heads, rows) {
  return tableOf(`${title}: the numbers`, heads, rows.map((row) => row.map((cell) => (typeof cell === "number" ? number(cell) : cell))), heads.map((_, i) => i));
}

/** Return a small line of values over time, or an empty one for fewer than two. */
export function spark(values, label) {
  const most = Math.max(...values, 1e-9);
  const points = values.map((value, i) => `${i ? "L" : "M"}${((i / Math.max(1, values.length - 1)) * 100).toFixed(1)} ${(23 - (value / most) * 21).toFixed(1)}`);
  return svg("svg", { class: "spark", viewBox: "0 0 100 24", preserveAspectRatio: "none", role: "img", "aria-label": label },
    values.length > 1 && svg("path", { d: points.join("") }));
}

/** Return bars of counts between edges. */
export function histogram(counts, edges, label) {
  const most = Math.max(...counts, 1);
  const width = 100 / counts.length;
  return h("div", { class: "histogram" },
    svg("svg", { viewBox: "0 0 100 30", preserveAspectRatio: "none", role: "img", "aria-label": label },
      counts.map((count, i) => svg("rect", { x: i * width + width * 0.06, width: width * 0.88, y: 30 - (29 * count) / most, height: (29 * count) / most }))),
    h("div", { class: "row spread small muted" }, h("span", {}, number(edges[0])), h("span", {}, number(edges[edges.length - 1]))));
}
