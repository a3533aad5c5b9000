// Requests to the server that the page came from, with the API key that this tab keeps.

import { h } from "./dom.js";

const KEPT = "blora-api-key";

/** An error that the server described. */
class ApiError extends Error {
  constructor(status, detail, retryAfterS) {
    super(detail.message);
    Object.assign(this, { status, code: detail.code, param: detail.param, retryAfterS });
  }
}

export const key = {
  get: () => sessionStorage.getItem(KEPT),
  keep: (value) => sessionStorage.setItem(KEPT, value),
};

/**
 * Return the response of a path relative to the page.
 *
 * raw: return responses with errors too, in place of an ApiError.
 * ask: ask for a key where the server wants one.
 */
export async function send(path, { method = "GET", body = null, raw = false, ask = true, signal = null } = {}) {
  const refusals = declined;
  for (;;) {
    const used = key.get();
    const headers = body === null ? {} : { "content-type": "application/json" };
    if (used !== null) headers.authorization = `Bearer ${used}`;
    const response = await fetch(path, { method, headers, body, signal }).catch((error) => {
      if (error.name === "AbortError") throw error;
      throw new ApiError(0, { message: "The server cannot be reached: see whether it still runs.", code: "unreachable" });
    });
    // A person who declined while this request was on its way is not asked a second time for it.
    const mayAsk = declined === refusals;
    if (response.status === 401 && ask && (key.get() !== used || (mayAsk && (await askForKey(used !== null))))) continue;
    if (response.ok || raw) return response;
    throw await errorOf(response);
  }
}

/** Return the JSON of a path; with a body, it is sent by POST. */
export async function json(path, body = undefined, options = {}) {
  const sent = body === undefined ? {} : { method: "POST", body: JSON.stringify(body) };
  return (await send(path, { ...sent, ...options })).json();
}

async function errorOf(response) {
  const told = await response.json().catch(() => null);
  const described = typeof told?.error?.message === "string"; // a proxy's error may be of another form
  const { status } = response;
  const detail = described ? told.error : { message: `The server answered ${status}.`, code: `http_${status}` };
  const after = Number(response.headers.get("retry-after") ?? NaN);
  return new ApiError(status, detail, Number.isFinite(after) ? after : null);
}

let asking = null;
let declined = 0;

/** Ask for a key in a dialog and keep it in this tab; return whether there is one. */
export function askForKey(refused = false) {
  asking ??= new Promise((resolve) => {
    const field = h("input", { type: "password", id: "key", autocomplete: "off", required: true, spellcheck: "false" });
    const hint = refused
      ? ["The server did not accept the last key."]
      : ["This server answers only with a key: whoever runs it makes one with ", h("code", {}, "blora key"), "."];
    const told = h("p", { id: "key-hint" }, ...hint);
    const check = (event) => {
      const place = field.value.trim().search(/[^\x20-\x7e]/);
      if (place < 0) return;
      event.preventDefault();
      told.textContent =
        `Got a key whose character ${place + 1} is not printable ASCII, expected letters, digits, "-" and "_": ` +
        "copy the key again as blora key printed it.";
      field.setAttribute("aria-invalid", "true");
      field.focus();
    };
    const dialog = h("dialog", { "aria-labelledby": "key-title" },
      h("form", { method: "dialog", on: { submit: check } },
        h("h2", { id: "key-title" }, "API key"), told,
        h("div", { class: "field" }, h("label", { for: "key" }, "Key"), field),
        h("p", { class: "muted small" }, "It stays in this tab and is gone once the tab is closed."),
        h("div", { class: "row" },
          h("button", { class: "primary", value: "use" }, "Use this key"),
          h("button", { type: "button", class: "quiet", on: { click: () => dialog.close("") } }, "Cancel"))));
    field.setAttribute("aria-describedby", "key-hint");
    dialog.addEventListener("close", () => {
      const given = dialog.returnValue === "use" && field.value.trim();
      if (given) key.keep(given);
      else declined += 1;
      dialog.remove();
      asking = null;
      document.dispatchEvent(new Event("key-changed"));
      resolve(Boolean(given));
    });
    document.body.append(dialog);
    dialog.showModal();
  });
  return asking;
}
