// The judging page: focus, keys, drafts that survive anything, and a submission that goes on only when the server has said yes.

import { actions, csrf, errorOf, openWindow, person, post, say, warn } from "./app.js";
import { drop, keep, kept } from "./outbox.js";
import { startClock } from "./clock.js";

export const form = document.getElementById("judge");
const { assignment } = form.dataset;
export const count = Number(form.dataset.count);
const answers = [...document.querySelectorAll(".answer")];
const saved = document.getElementById("saved");
const error = document.getElementById("error");
const conflict = document.getElementById("conflict");
const submit = document.getElementById("submit");
const clock = startClock(Number(form.elements.active_seconds.value));
const SAVE_AFTER = 1000; // milliseconds without a change
const AGAIN_AFTER = 5000; // without a connection

/** The letter of an answer by its place. */
export const letter = (place) => "ABCDEFGHI"[place];

// Focus: one answer has it; the one before is "beside" it.

export const focus = { at: -1, beside: -1 };

/** Bring an answer into focus. */
export function focusOn(place, { move = true } = {}) {
  if (place < 0 || place >= count) return;
  if (place !== focus.at) {
    focus.beside = focus.at;
    focus.at = place;
    answers.forEach((answer, i) => {
      answer.classList.toggle("focus", i === place);
      answer.classList.toggle("beside", i === focus.beside);
    });
    form.dispatchEvent(new CustomEvent("refocus"));
  }
  if (move) {
    answers[place].focus({ preventScroll: true });
    answers[place].scrollIntoView({ block: "nearest" });
  }
}
answers.forEach((answer, i) => answer.addEventListener("focusin", () => focusOn(i, { move: false })));
answers.forEach((answer, i) => answer.addEventListener("pointerdown", () => focusOn(i, { move: false })));

/** Set a radio button or a box by its name and value, as a click would. */
export function press(name, value) {
  const control = [...form.elements].find((element) => element.name === name && element.value === String(value));
  control?.click();
  return control;
}

function clear(names) {
  for (const element of form.elements) if (names.includes(element.name)) element.checked = false;
  form.dispatchEvent(new Event("change", { bubbles: true }));
  say("Taken back.");
}

/** The value of a group of radio buttons, or "". */
export const valueOf = (name) => form.querySelector(`input[name="${name}"]:checked`)?.value ?? "";

Object.assign(actions, {
  focus: (key) => focusOn(key.charCodeAt(0) - 65),
  following: () => focusOn(Math.min(focus.at + 1, count - 1)),
  preceding: () => focusOn(Math.max(focus.at - 1, 0)),
  choose: (key) => say(press("choice", key)?.parentElement.querySelector(".unseen").textContent.slice(2) ?? ""),
  clear: () => clear(["choice", "best", "worst"]),
  best: () => focus.at >= 0 && press("best", focus.at) && say(`${letter(focus.at)} is the best.`),
  worst: () => focus.at >= 0 && press("worst", focus.at) && say(`${letter(focus.at)} is the worst.`),
  acceptable: () => focus.at >= 0 && press(`good-${focus.at}`, "1"),
  bad: () => press("all_bad", "1"),
  reason: () => document.getElementById("rationale")?.focus(),
  rewrite: startRewrite,
  diff: compare,
  skip: () => {
    const menu = document.querySelector("details.skip");
    if (!menu) return;
    menu.open = true;
    menu.querySelector(".menu button").focus();
  },
  submit: () => form.requestSubmit(submit),
});

function compare() {
  const both = document.getElementById("view-both");
  if (both) {
    const diff = document.getElementById("view-diff");
    (diff.checked ? both : diff).click();
    return;
  }
  const [left, right] = [focus.beside, focus.at].map((place, i) => (place < 0 ? i : place));
  openCompared(Math.min(left, right), left === right ? (right + 1) % count : Math.max(left, right));
}

function openCompared(left, right) {
  openWindow(`/a/${assignment}/diff?left=${left}&right=${right}`, `${letter(left)} and ${letter(right)}`);
}
document.getElementById("compare")?.addEventListener("submit", (event) => {
  event.preventDefault();
  const fields = new FormData(event.target);
  openCompared(fields.get("left"), fields.get("right"));
});

// One's own version of the best answer.

function best() {
  const choice = Number(valueOf("choice"));
  if (choice && choice !== 4) return choice < 4 ? 0 : 1;
  if (valueOf("best")) return Number(valueOf("best"));
  const places = answers.map((_, i) => Number(valueOf(`place-${i}`)) || Infinity);
  const first = Math.min(...places);
  return first < Infinity ? places.indexOf(first) : Math.max(focus.at, 0);
}

async function startRewrite() {
  const field = document.getElementById("rewrite");
  if (!field) return;
  field.closest("details").open = true;
  const made = document.getElementById("rewrite-of");
  if (!made.value) made.value = String(best());
  field.focus();
  if (!field.value) await fillRewrite();
}

async function fillRewrite() {
  const field = document.getElementById("rewrite");
  const from = document.getElementById("rewrite-of").value;
  if (from === "") return say("Choose the answer that you start from.");
  if (field.value.trim()) return say("There is text in the field already.");
  try {
    const response = await fetch(`/a/${assignment}/text/${from}`);
    if (response.ok && !field.value.trim()) field.value = await response.text();
    field.dispatchEvent(new Event("input", { bubbles: true }));
    field.setSelectionRange(0, 0);
  } catch {
    say("There is no connection, so the text could not be fetched.");
  }
}
document.getElementById("fill-rewrite")?.addEventListener("click", fillRewrite);

// "None is good enough" and "good enough" take each other back.

form.addEventListener("change", ({ target }) => {
  const bad = form.elements.all_bad;
  if (!bad || !target.checked) return;
  if (target === bad) form.querySelectorAll('input[name^="good-"]').forEach((box) => { box.checked = false; });
  else if (target.name?.startsWith("good-")) bad.checked = false;
});
form.addEventListener("change", () => {
  for (const which of ["best", "worst"]) {
    const shown = document.getElementById(`${which}-letter`);
    if (shown) shown.textContent = valueOf(which) === "" ? "–" : letter(valueOf(which));
  }
});

// Scrolling together: by the same part of each answer's length.

const bodies = [...document.querySelectorAll(".answer-body")];
let leading = null;
bodies.forEach((one) => {
  one.addEventListener("pointerenter", () => { leading = one; });
  one.addEventListener("focusin", () => { leading = one; });
  one.addEventListener("scroll", () => {
    if (leading !== one || !document.getElementById("view-together")?.checked) return;
    const part = one.scrollTop / Math.max(1, one.scrollHeight - one.clientHeight);
    for (const other of bodies) if (other !== one) other.scrollTop = part * (other.scrollHeight - other.clientHeight);
  }, { passive: true });
});

// Drafts: what the form says, its version at the server, and what the server is known to have.

let version = Number(form.elements.draft_version.value);
let known = "";
let unsure = []; // what was sent and not confirmed: it may have arrived though the answer to it was lost
let timer = 0;
let saving = false;
let theirs = null; // the other side of a conflict
const OURS_ALONE = ["csrf", "submission_id", "draft_version", "active_seconds"];

function said() {
  const fields = {};
  for (const [name, value] of new FormData(form)) if (!OURS_ALONE.includes(name) && value !== "") fields[name] = value;
  return fields;
}
const written = (fields) => JSON.stringify(Object.entries(fields).filter(([name]) => !OURS_ALONE.includes(name)).sort());

function show(fields) {
  for (const element of form.elements) {
    if (!element.name || OURS_ALONE.includes(element.name)) continue;
    const value = fields[element.name] ?? "";
    if (element.type === "radio") element.checked = element.value === value;
    else if (element.type === "checkbox") element.checked = value !== "";
    else if (element.type !== "submit") element.value = value;
  }
  if (fields.rewrite) document.querySelector(".rewrite").open = true;
  form.dispatchEvent(new Event("change", { bubbles: true }));
}

function changed() {
  if (written(said()) === known) return;
  keep("draft", assignment, { person, version, unsure, fields: said() });
  saved.textContent = "Not saved yet";
  clearTimeout(timer);
  timer = setTimeout(save, SAVE_AFTER);
}
form.addEventListener("input", changed);
form.addEventListener("change", changed);

async function save({ keepalive = false } = {}) {
  clearTimeout(timer);
  const fields = said();
  const text = written(fields);
  if (saving || sending || theirs || text === known) return;
  saving = true;
  unsure.push(text);
  keep("draft", assignment, { person, version, unsure, fields });
  try {
    const content = JSON.stringify({ version, fields: { ...fields, active_seconds: String(clock()) } });
    const headers = { "Content-Type": "application/json", "X-CSRF": csrf, Accept: "application/json" };
    const response = await fetch(`/a/${assignment}/draft`, { method: "PUT", body: content, headers, keepalive });
    if (response.status === 409) disagree(await response.json());
    else if (response.ok) confirm((await response.json()).version, text);
    else if (response.status === 401) loggedOut();
    else saved.textContent = `Not saved. ${await errorOf(response)}`;
  } catch {
    lost();
    timer = setTimeout(save, AGAIN_AFTER);
  } finally {
    saving = false;
  }
  if (written(said()) !== text && !theirs) changed();
}

function confirm(number, text) {
  version = number;
  known = text;
  unsure = [];
  if (written(said()) === known) drop("draft", assignment);
  saved.textContent = `Saved ${new Date().toLocaleTimeString()}`;
  found();
}

function disagree(other) {
  const held = written(other.fields ?? {});
  if (unsure.includes(held)) { // not another window's: our own, whose answer was lost
    confirm(other.version, held);
    return changed();
  }
  theirs = { version: other.version, fields: other.fields ?? {} };
  conflict.hidden = false;
  saved.textContent = "Changed in another window";
}
document.getElementById("take-theirs").addEventListener("click", () => {
  const mine = said();
  show(theirs.fields);
  theirs = { version: theirs.version, fields: mine };
  say("This is the other one. The same button shows yours again.");
});
document.getElementById("keep-mine").addEventListener("click", () => {
  version = theirs.version;
  theirs = null;
  conflict.hidden = true;
  known = "";
  save();
});

function lost() {
  saved.textContent = "Not sent yet";
  warn("There is no connection. What you have said is kept on this computer and is sent when it is back.");
}
function found() {
  warn("");
}
function loggedOut() {
  warn("You have been logged out. What you have said is kept on this computer: log in again and it is sent.", `/login?next=/a/${assignment}`);
}
addEventListener("online", () => (kept("send", assignment, person) ? sendKept() : save()));
document.addEventListener("visibilitychange", () => document.visibilityState === "hidden" && save({ keepalive: true }));

// Submitting and skipping.

let sending = false;

form.addEventListener("submit", (event) => {
  event.preventDefault();
  if (sending) return;
  clearTimeout(timer);
  form.elements.active_seconds.value = String(clock());
  const fields = Object.fromEntries(new FormData(form, event.submitter));
  delete fields.csrf; // added anew when it is sent
  const url = event.submitter?.hasAttribute("formaction") ? new URL(event.submitter.formAction).pathname : new URL(form.action).pathname;
  keep("send", assignment, { person, url, fields });
  send(url, fields);
});

function sendKept() {
  const waiting = kept("send", assignment, person);
  if (waiting && !sending) send(waiting.url, waiting.fields);
}

async function send(url, fields) {
  sending = true;
  submit.disabled = true;
  error.hidden = true;
  saved.textContent = "Sending…";
  try {
    const response = await post(url, new URLSearchParams(fields));
    if (response.ok) {
      const { next } = await response.json();
      drop("send", assignment);
      drop("draft", assignment);
      location.assign(next);
      return; // the button stays off until the next page is there
    }
    if (response.status === 401) loggedOut();
    else await refuse(response);
  } catch {
    lost();
    setTimeout(sendKept, AGAIN_AFTER);
  }
  sending = false;
  submit.disabled = false;
}

async function refuse(response) {
  if (response.status < 500) drop("send", assignment); // as it is it will never be taken; the form still says it
  error.textContent = await errorOf(response);
  error.hidden = false;
  saved.textContent = "Not sent";
}

// What an earlier visit could not send comes first.

known = written(said());
const before = kept("draft", assignment, person);
if (kept("send", assignment, person)) {
  show(kept("send", assignment, person).fields);
  sendKept();
} else if (before && written(before.fields) !== known) {
  const served = said();
  show(before.fields);
  unsure = before.unsure ?? [];
  if (before.version === version || unsure.includes(known)) save();
  else disagree({ version, fields: served });
} else {
  drop("draft", assignment);
}
form.dispatchEvent(new Event("change", { bubbles: true }));
form.classList.add("ready"); // keys work from here on
