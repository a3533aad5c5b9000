// Elements of a page. Texts become text nodes, so that no text from a server or a file is read as HTML.

const SVG = "http://www.w3.org/2000/svg";
const PROPERTIES = new Set(["checked", "disabled", "hidden", "open", "selected", "value"]);

/** Return an HTML element. `on` has its event listeners; `null` and `false` children are left out. */
export function h(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** Return an SVG element. */
export function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined) continue;
    if (name === "on") for (const [event, listener] of Object.entries(value)) element.addEventListener(event, listener);
    else if (PROPERTIES.has(name)) element[name] = value;
    else if (value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== false && child !== undefined));
  return element;
}

/** Set CSS properties, which the content security policy allows from scripts and not from attributes. */
export function styled(element, properties) {
  for (const [name, value] of Object.entries(properties)) element.style.setProperty(name, value);
  return element;
}

let numbered = 0;

/** Return an id that no other element has. */
export function newId(name) {
  return `${name}-${++numbered}`;
}

/** Return a label above its field. */
export function labelled(text, field, hint = null) {
  field.id ||= newId("field");
  const about = hint && h("span", { class: "hint", id: `${field.id}-hint` }, hint);
  if (about) field.setAttribute("aria-describedby", about.id);
  return h("div", { class: "field" }, h("label", { for: field.id }, text), about, field);
}

/** Return a list of terms and values; entries without a value are left out. */
export function facts(entries) {
  const told = entries.filter(([, value]) => value !== null && value !== undefined && value !== "");
  return h("dl", { class: "facts" }, told.map(([term, value]) => [h("dt", {}, term), h("dd", {}, value)]));
}

/** Return a table; cells are texts or elements. `numeric` has the positions of right-aligned columns. */
export function tableOf(caption, heads, rows, numeric = []) {
  const side = (column) => (numeric.includes(column) ? "number" : null);
  return h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption },
    h("table", {},
      h("caption", { class: "unseen" }, caption),
      h("thead", {}, h("tr", {}, heads.map((head, i) => h("th", { scope: "col", class: side(i) }, head)))),
      h("tbody", {}, rows.map((row) => h("tr", {}, row.map((cell, i) => h("td", { class: side(i) }, cell)))))));
}

/** Return a text whose parts between backquotes are code. */
export function withCode(text) {
  return text.split("`").map((part, i) => (i % 2 ? h("code", {}, part) : part));
}

/** Return a number with three significant digits, at least down to the thousandth. */
export function number(value) {
  if (value === null || value === undefined) return "–";
  if (value !== 0 && Math.abs(value) < 0.001) return "< 0.001";
  if (value < 1 && value.toFixed(3) === "1.000") return "> 0.999";
  if (Math.abs(value) >= 100) return Math.round(value).toLocaleString("en");
  return String(Number(value.toFixed(Math.abs(value) < 1 ? 3 : 2)));
}

/** Return a share as a percentage. */
export function percent(share, digits = 0) {
  if (share === null || share === undefined) return "–";
  const shown = 100 * share;
  if (shown > 0 && shown < 1 && digits === 0) return `${Number(shown.toPrecision(1))} %`;
  return `${Number(shown.toFixed(digits))} %`;
}

/** Return a target or a probability of a proof as a percentage, without rounding it to more than is proved. */
export function provedPercent(share) {
  return `${Number((100 * share).toPrecision(12))} %`;
}

/** Offer a text as a file. */
export function download(name, type, text) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  const link = h("a", { href: url, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}

/** Wait, in seconds. */
export function seconds(duration) {
  return new Promise((resolve) => setTimeout(resolve, duration * 1000));
}
