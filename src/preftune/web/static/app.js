// What every page does with script: keys, the window for keys and guidelines, how answers are shown, and answers that could not be
// sent yet. All pages work without it, but for keys and dragging. Text is only ever set as text: nothing here makes HTML.

import { flush } from "./outbox.js";

const body = document.body;
document.documentElement.classList.add("script");
export const csrf = body.dataset.csrf;
export const person = body.dataset.person ?? "";
const keys = JSON.parse(body.dataset.keys);
const dialog = document.getElementById("window");
const spoken = document.getElementById("spoken");
const offline = document.getElementById("offline");

/** What keys and buttons with data-action do, by the action's name in the table of keys; each gets the key. */
export const actions = {
  help: () => openWindow("/keys", "Keys"),
  guide: () => openWindow("/guide", "Guidelines"),
  undo: async () => {
    if (!person) return;
    try {
      const response = await post("/undo", new URLSearchParams({ assignment: "" }));
      if (response.ok) location.assign((await response.json()).next);
      else warn(await errorOf(response));
    } catch {
      warn("There is no connection, so nothing was taken back.");
    }
  },
  leave: () => {
    const menu = document.querySelector("details.skip[open]");
    if (dialog.open) dialog.close();
    else if (menu) menu.open = false;
    else if (writes(document.activeElement)) document.activeElement.blur();
  },
};
for (const view of ["raw", "numbers", "wrap", "full", "together", "pairwise"]) {
  actions[view] = () => document.getElementById(`view-${view}`)?.click();
}

/** Say something to a screen reader. */
export function say(text) {
  spoken.textContent = text;
}

/** Show a warning at the top of the page; none takes it away. */
export function warn(text, link = "") {
  offline.hidden = !text;
  offline.replaceChildren(text);
  if (link) offline.append(" ", Object.assign(document.createElement("a"), { href: link, textContent: "Open it" }));
}

/** Send a form as the script does: the answer is JSON. */
export function post(url, fields) {
  return fetch(url, { method: "POST", body: fields, headers: { "X-CSRF": csrf, Accept: "application/json" } });
}

/** The sentence in which the server says what is wrong. */
export async function errorOf(response) {
  try {
    const { error } = await response.json();
    return error.charAt(0).toUpperCase() + error.slice(1);
  } catch {
    return `The server answers ${response.status}.`;
  }
}

/** Whether keys pressed in an element write there. */
export function writes(element) {
  if (!element) return false;
  if (element.isContentEditable || ["TEXTAREA", "SELECT"].includes(element.tagName)) return true;
  return element.tagName === "INPUT" && !["radio", "checkbox", "button", "submit"].includes(element.type);
}

/** Show a page of ours in the window; without a connection the browser goes there and says so. */
export function openWindow(url, title) {
  const request = new XMLHttpRequest(); // it reads HTML without running or parsing strings by hand
  request.open("GET", url);
  request.responseType = "document";
  request.onload = () => {
    const main = request.response?.querySelector("main");
    if (request.status !== 200 || !main) return location.assign(url);
    main.querySelectorAll("h1, form, .back").forEach((element) => element.remove());
    document.getElementById("window-title").textContent = title;
    const inside = document.getElementById("window-body");
    inside.replaceChildren(...[...main.children].map((element) => document.adoptNode(element)));
    showSetting();
    if (!dialog.open) dialog.showModal();
    inside.focus();
  };
  request.onerror = () => warn("There is no connection. What you have written is kept on this computer.");
  request.send();
}

function nameOf(event) {
  let name = event.key;
  // Caps lock is not Shift: a letter's case is what the Shift key says.
  if (/^[a-z]$/i.test(name)) name = event.shiftKey ? name.toUpperCase() : name.toLowerCase();
  else if (name.length > 1 && event.shiftKey) name = `Shift+${name}`;
  return event.ctrlKey || event.metaKey ? `Ctrl+${name}` : name;
}

document.addEventListener("keydown", (event) => {
  if (event.isComposing || event.repeat || event.altKey || event.defaultPrevented) return;
  const name = nameOf(event);
  const entry = Object.hasOwn(keys, name) ? keys[name] : undefined;
  if (!entry || !actions[entry.action]) return;
  if (writes(event.target) && !entry.inFields) return;
  if (dialog.open && entry.action !== "leave") return;
  if (remembered("keys") === "off" && !entry.inFields && name !== "?") return;
  event.preventDefault();
  actions[entry.action](name);
});

document.addEventListener("click", (event) => {
  const element = event.target.closest("[data-action]");
  if (!element || event.ctrlKey || event.metaKey) return;
  event.preventDefault();
  actions[element.dataset.action]?.(element.dataset.action);
});

/** What this browser remembers of a person's habits: nothing about answers. */
export function remembered(name, value) {
  try {
    if (value !== undefined) localStorage.setItem(`preftune-${name}`, value);
    return localStorage.getItem(`preftune-${name}`);
  } catch {
    return null; // storage is switched off: habits last as long as the page
  }
}

function showSetting() {
  document.querySelectorAll("[data-keys-on]").forEach((box) => {
    box.checked = remembered("keys") !== "off";
  });
}

document.addEventListener("change", (event) => {
  if (event.target.matches("[data-keys-on]")) remembered("keys", event.target.checked ? "on" : "off");
  if (event.target.matches("[data-view]")) remembered(`view-${event.target.dataset.view}`, event.target.checked ? "on" : "off");
});
document.querySelectorAll("[data-view]").forEach((box) => {
  box.checked = remembered(`view-${box.dataset.view}`) === "on";
});
showSetting();

// Answers from before that the server has not got yet: sent from whatever page is open.
if (person) {
  const tell = (count, refused) => {
    if (refused) warn(`Something you had sent was not taken: ${refused.error}`, `/a/${refused.assignment}`);
    else if (count) say("What could not be sent before has been sent.");
  };
  const open = document.getElementById("judge")?.dataset.assignment;
  flush(person, post, errorOf, open).then(({ count, refused }) => tell(count, refused));
}
