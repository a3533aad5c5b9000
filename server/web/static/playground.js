// The playground: its views, and what they share.

import { askForKey, json, key } from "./api.js";
import { showAsk } from "./ask.js";
import { showCard } from "./card.js";
import { h } from "./dom.js";
import { showLive } from "./live.js";
import { modelsOf } from "./models.js";
import { showTable } from "./table.js";

const VIEWS = ["ask", "card", "table", "live"];
const RETRY_S = 2;

const problem = document.getElementById("problem");
const keyButton = document.getElementById("key-button");
const card = showCard(document.getElementById("view-card"));
const live = showLive(document.getElementById("view-live"));
let fillIn = null;
let table = null;
let shown = null;

function wanted() {
  const [name, ...rest] = location.hash.slice(1).split("?");
  return { name: VIEWS.includes(name) ? name : "ask", given: Object.fromEntries(new URLSearchParams(rest.join("?"))) };
}

function turn() {
  if (location.hash === "#main") return;
  const { name } = wanted();
  for (const view of VIEWS) {
    document.getElementById(`view-${view}`).hidden = view !== name;
    const link = document.querySelector(`nav a[href="#${view}"]`);
    if (view === name) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = `${name[0].toUpperCase()}${name.slice(1)} · blora playground`;
  card.visible(name === "card");
  live.visible(name === "live");
}

async function start() {
  try {
    const [{ data }, info] = await Promise.all([json("v1/adapters"), json("info")]);
    problem.replaceChildren();
    document.getElementById("running").textContent = info.model ? `${info.model.name} · ${info.model.dtype} · ${info.model.device}` : "";
    if (data.length === 0) {
      say("No adapter is loaded. Start the server with --adapters NAME=FOLDER, or load one with POST /v1/adapters.");
      return;
    }
    const loaded = JSON.stringify([data, info.limits]);
    if (loaded === shown) return; // another key for the same adapters: texts, answers and rows stay
    shown = loaded;
    const models = modelsOf(data);
    fillIn = showAsk(document.getElementById("view-ask"), models);
    fillIn(wanted().given);
    card.fill(data);
    if (!table?.hasRows()) table = showTable(document.getElementById("view-table"), data, info.limits);
  } catch (error) {
    if (error.code === "not_ready") {
      say("The model is being loaded. This page goes on by itself.");
      setTimeout(start, RETRY_S * 1000);
    } else if (error.status === 401) {
      say("This server answers only with an API key.", h("button", { type: "button", on: { click: async () => (await askForKey()) && start() } }, "Enter a key"));
    } else {
      say(error.message, h("button", { type: "button", on: { click: start } }, "Try again"));
    }
  }
}

function say(text, action = null) {
  problem.replaceChildren(h("div", { class: "panel notice row" }, h("p", {}, text), action ?? ""));
}

document.addEventListener("key-changed", () => { keyButton.hidden = key.get() === null; });
keyButton.hidden = key.get() === null;
keyButton.addEventListener("click", async () => {
  if (await askForKey()) start();
});
window.addEventListener("hashchange", () => {
  turn();
  fillIn?.(wanted().given);
});
turn();
start();
