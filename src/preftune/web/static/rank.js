// Ranking: the board of places below the answers. The radio buttons in each answer's head hold what is said; the board shows it,
// and an answer's letter can be dragged from place to place.

import { actions, say } from "./app.js";
import { count, focus, focusOn, form, letter, press, valueOf } from "./judge.js";

const board = document.getElementById("board");
const placeOf = (answer) => Number(valueOf(`place-${answer}`)) || 0;

function put(answer, place) {
  if (answer < 0 || place > count) return;
  press(`place-${answer}`, place || "");
  const level = [...Array(count).keys()].filter((other) => other !== answer && place && placeOf(other) === place);
  const tied = level.length ? `, level with ${level.map(letter).join(" and ")}` : "";
  say(place ? `${letter(answer)}: place ${place}${tied}.` : `${letter(answer)} is not ranked.`);
}

Object.assign(actions, {
  place: (key) => put(focus.at, Number(key)),
  unplace: () => put(focus.at, 0),
  raise: () => put(focus.at, Math.max(1, (placeOf(focus.at) || count + 1) - 1)),
  lower: () => put(focus.at, Math.min(count, placeOf(focus.at) + 1)),
  level: () => focus.beside >= 0 && placeOf(focus.beside) && put(focus.at, placeOf(focus.beside)),
});

function element(name, className, text = "") {
  return Object.assign(document.createElement(name), { className, textContent: text });
}

function draw() {
  const tiers = [...Array(count).keys()].map((i) => tier(i + 1, String(i + 1)));
  board.replaceChildren(...tiers, tier(0, "not ranked"));
}

function tier(place, title) {
  const box = element("div", place ? "tier" : "tier out");
  box.dataset.place = place;
  box.append(element("span", "", title));
  for (let answer = 0; answer < count; answer += 1) {
    if (placeOf(answer) !== place) continue;
    const chip = element("span", `chip${focus.at === answer ? " focus" : ""}`, letter(answer));
    chip.dataset.answer = answer;
    box.append(chip);
  }
  return box;
}

// Dragging by pointer events, which serve a mouse, a pen and a finger alike. A click without a move brings the answer into focus.

let dragged = null;

function tierAt(event) {
  return document.elementFromPoint(event.clientX, event.clientY)?.closest(".tier") ?? null;
}

board.addEventListener("pointerdown", (event) => {
  const chip = event.target.closest(".chip");
  if (!chip || event.button) return;
  event.preventDefault();
  dragged = chip;
  board.setPointerCapture(event.pointerId);
  chip.classList.add("dragged");
});
board.addEventListener("pointermove", (event) => {
  if (!dragged) return;
  const over = tierAt(event);
  board.querySelectorAll(".tier").forEach((box) => box.classList.toggle("over", box === over));
});
board.addEventListener("pointerup", (event) => {
  if (!dragged) return;
  const answer = Number(dragged.dataset.answer);
  const target = tierAt(event);
  const same = !target || target === dragged.parentElement;
  dragged = null;
  focusOn(answer, { move: same });
  if (same) draw();
  else put(answer, Number(target.dataset.place));
});
board.addEventListener("pointercancel", () => {
  dragged = null;
  draw();
});

const pairwise = document.getElementById("view-pairwise");
function lay() {
  document.body.classList.toggle("pairwise", pairwise.checked && focus.at >= 0);
  if (pairwise.checked && focus.at < 0) focusOn(0, { move: false });
  if (pairwise.checked && focus.beside < 0) focusOn(1, { move: false });
}

form.addEventListener("change", draw);
form.addEventListener("refocus", () => {
  draw();
  lay();
});
pairwise.addEventListener("change", lay);
draw();
lay();
