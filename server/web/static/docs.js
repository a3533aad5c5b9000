// The API page: routes and schemas of /openapi.json, with requests that run from the page.

import { askForKey, json, send } from "./api.js";
import { h, labelled, number, tableOf, withCode } from "./dom.js";
import { exampleOf, fieldsOf, nameOf, typeOf } from "./schema.js";

const METHODS = ["get", "post", "put", "delete"];
const TEXT = "I need a full dump of our workspace in JSON for the archive.";

/** Return an adapter's own question, or one to try, as /v1/decisions takes it. */
function decisionOf({ question, prompt }) {
  const { type, name, instructions } = question ?? {};
  const own = { ...(name ? { name } : {}), instructions: instructions || "Which of these is it?" };
  if (prompt.choices === null) return { type: "predicate", name: "urgent", instructions: "Must somebody act today?" };
  if (type === "predicate") return { type, ...own };
  if (type === "score") return { type, ...own, levels: prompt.choices.map((label) => ({ label })) };
  return { type: "choice", ...own, choices: prompt.choices.map((value) => ({ value })) };
}

/** Return the same question as /v1/systemone takes it, under its name. */
function systemOneOf(card) {
  const { type, name, levels, choices, ...own } = decisionOf(card);
  const criteria = levels?.map(({ label }) => label) ?? (choices && Object.fromEntries(choices.map(({ value }) => [value, null])));
  return { [name ?? "question"]: { type: type === "predicate" ? "noul" : type, ...own, ...(criteria ? { criteria } : {}) } };
}

/** Return the body that a route is tried with; `cards` are those of the adapters, and none without a key. */
function exampleFor(path, schema, schemas, cards) {
  const [card] = cards;
  if (card && path === "/v1/decisions") return { model: card.name, input: TEXT, questions: [decisionOf(card)] };
  if (card && path === "/v1/systemone") return { model: card.name, state: TEXT, questions: systemOneOf(card) };
  const choices = card && card.prompt.choices === null ? { choices: ["yes", "no"] } : {};
  const known = {
    "/v1/predict": { ...(card ? { adapter: card.name } : {}), prompt: TEXT, ...choices },
    "/v1/feedback": { prediction_id: "the id of an answer", label: card?.prompt.choices?.[0] ?? "yes" },
  };
  return known[path] ?? exampleOf(schema, schemas);
}

async function start() {
  const main = document.getElementById("main");
  try {
    const document_ = await json("openapi.json");
    const cards = await send("v1/adapters", { raw: true, ask: false }).then((response) => (response.ok ? response.json() : { data: [] }));
    draw(main, document_, cards.data);
  } catch (error) {
    main.replaceChildren(h("p", { class: "panel error", role: "alert" }, error.message));
  }
}

function draw(main, openapi, cards) {
  const schemas = openapi.components?.schemas ?? {};
  const operations = Object.entries(openapi.paths).flatMap(([path, item]) =>
    METHODS.filter((method) => item[method]).map((method) => ({ path, method: method.toUpperCase(), id: `${method}-${path.replaceAll(/[^a-z0-9]+/gi, "-")}`, ...item[method] })));
  main.replaceChildren(
    h("div", { class: "intro" },
      h("h1", {}, `${openapi.info.title} ${openapi.info.version}`),
      h("p", {}, openapi.info.summary ?? ""),
      h("p", { class: "muted" }, "JSON in, JSON out. An unknown field is refused. With ", h("code", {}, "--api-keys"), " each request carries ", h("code", {}, "authorization: Bearer KEY"), "; requests from this page carry the key that the tab keeps.")),
    ...operations.map((operation) => operationPart(operation, schemas, cards)),
    h("h2", { id: "schemas" }, "Schemas"),
    ...Object.entries(schemas).sort().map(([name, schema]) => schemaPart(name, schema)));
  document.getElementById("contents").replaceChildren(
    h("h2", {}, "Routes"),
    h("ul", {}, operations.map(({ id, method, path }) => h("li", {}, h("a", { href: `#${id}` }, h("span", { class: `method ${method}` }, method), path)))),
    h("h2", {}, "Schemas"),
    h("ul", {}, Object.keys(schemas).sort().map((name) => h("li", {}, h("a", { href: `#schema-${name}` }, name)))));
  if (location.hash) document.getElementById(location.hash.slice(1))?.scrollIntoView();
}

function typeCell(type) {
  return h("span", { class: "type" }, type.map((part) => (part.name ? h("a", { href: `#schema-${part.name}` }, part.name) : part)));
}

function fieldTable(caption, fields) {
  return tableOf(caption, ["Field", "Type", "Default", "Meaning"], fields.map(({ name, type, limits, required, standard, description }) => [
    h("code", {}, name),
    h("span", {}, typeCell(type), limits ? h("span", { class: "muted small" }, `, ${limits}`) : ""),
    required ? h("strong", { class: "small" }, "required") : h("code", {}, standard),
    h("span", {}, withCode(description)),
  ]));
}

function schemaPart(name, schema) {
  const fields = fieldsOf(schema);
  return h("section", { class: "panel schema", id: `schema-${name}` },
    h("h3", {}, name),
    schema.description && h("p", {}, withCode(firstPart(schema.description))),
    fields.length > 0 ? fieldTable(`Fields of ${name}`, fields) : h("p", {}, typeCell(typeOf(schema))));
}

/** Return a docstring without its list of attributes, which the table of fields repeats. */
function firstPart(text) {
  return text.split(/\n\s*(?:Attributes|Args|Raises|Returns):/)[0].trim();
}

function operationPart(operation, schemas, cards) {
  const { id, path, method, summary, description, parameters = [], requestBody, responses } = operation;
  const body = requestBody?.content?.["application/json"]?.schema;
  const alternatives = body ? (body.anyOf ?? body.oneOf ?? [body]).map(nameOf).filter(Boolean) : [];
  return h("section", { class: "panel operation", id, "aria-labelledby": `${id}-title` },
    h("h2", { id: `${id}-title` }, h("span", { class: `method ${method}` }, method), path),
    h("p", { class: "summary" }, summary ?? ""),
    description && h("p", {}, withCode(firstPart(description))),
    ...alternatives.map((name) => h("details", { open: alternatives[0] === name },
      h("summary", {}, alternatives.length > 1 ? `Fields of the body, as ${name}` : "Fields of the body"),
      fieldTable(`Fields of ${name} in ${method} ${path}`, fieldsOf(schemas[name])))),
    h("details", {},
      h("summary", {}, "Responses"),
      tableOf(`Responses of ${method} ${path}`, ["Status", "Body", "Meaning"], Object.entries(responses).map(([status, response]) => {
        const schema = response.content?.["application/json"]?.schema;
        return [h("code", {}, status), schema ? typeCell(typeOf(schema)) : "", response.description ?? ""];
      }))),
    tryPart({ path, method, parameters, example: body ? exampleFor(path, body, schemas, cards) : null, cards }));
}

function tryPart({ path, method, parameters, example, cards }) {
  const fields = parameters.filter((parameter) => parameter.in === "path").map(({ name }) => {
    const input = h("input", { type: "text", value: name === "name" ? (cards[0]?.name ?? "") : "", required: true });
    return { name, input };
  });
  const body = example === null ? null : h("textarea", { spellcheck: "false", rows: "6" }, JSON.stringify(example, null, 2));
  const status = h("p", { role: "status" });
  const shown = h("pre", { class: "code", tabindex: "0", hidden: true, "aria-label": `Answer to ${method} ${path}` });
  const run = async (event) => {
    event.preventDefault();
    const target = fields.reduce((url, { name, input }) => url.replace(`{${name}}`, encodeURIComponent(input.value)), path.slice(1));
    const began = performance.now();
    status.textContent = "Asking …";
    try {
      const response = await send(target, { method, body: body?.value ?? null, raw: true });
      const text = await response.text();
      status.textContent = `${response.status} ${response.statusText} after ${number(performance.now() - began)} ms`;
      shown.textContent = pretty(text);
      shown.hidden = text === "";
    } catch (error) {
      status.textContent = error.message;
      shown.hidden = true;
    }
  };
  return h("form", { class: "try", "aria-label": `Try ${method} ${path}`, on: { submit: run } },
    fields.map(({ name, input }) => labelled(name, input)),
    body && labelled("Body", body),
    h("div", { class: "row" }, h("button", { class: "primary" }, `Run ${method} ${path}`), status),
    shown);
}

function pretty(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}

document.getElementById("key-button").addEventListener("click", async () => {
  if (await askForKey()) start();
});
start();
