// Shows how a split and the side-by-side view stand.

const place = document.getElementById("results");
const SVG = "http://www.w3.org/2000/svg";

function make(tag, text = "", attributes = {}) {
  const element = document.createElement(tag);
  element.textContent = text;
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

function shape(tag, attributes, text = "") {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.textContent = text;
  return element;
}

// The rate of A with its interval, from 0 to 1; the line in the middle is "alike".
function scale(verdict) {
  const drawing = shape("svg", { viewBox: "0 0 340 32", role: "img", "aria-label": `A wins ${percent(verdict.rate)}, interval ${percent(verdict.low)} to ${percent(verdict.high)}` });
  const at = (share) => 20 + 300 * share;
  drawing.append(
    shape("rect", { class: "band", x: at(verdict.low), y: 4, width: Math.max(1, 300 * (verdict.high - verdict.low)), height: 12, rx: 2 }),
    shape("line", { x1: 20, x2: 320, y1: 18, y2: 18 }), shape("line", { x1: 170, x2: 170, y1: 1, y2: 18 }),
    shape("line", { class: "rate", x1: at(verdict.rate), x2: at(verdict.rate), y1: 2, y2: 18 }),
    shape("text", { x: 20, y: 30 }, "B always"), shape("text", { x: 170, y: 30, "text-anchor": "middle" }, "alike"),
    shape("text", { x: 320, y: 30, "text-anchor": "end" }, "A always"),
  );
  return drawing;
}

const percent = (share) => `${(100 * share).toFixed(0)} %`;

function table(head, rows) {
  const frame = make("div", "", { class: "frame" }), whole = make("table");
  const top = whole.createTHead().insertRow();
  for (const name of head) top.append(make("th", name, { scope: "col" }));
  const inside = whole.createTBody();
  for (const row of rows) {
    const line = inside.insertRow();
    for (const cell of row) line.append(make("td", String(cell)));
  }
  frame.append(whole);
  return frame;
}

function section(title, found, rows) {
  const one = make("section");
  one.append(make("h2", title), make("p", found.says, { class: "says" }), scale(found.verdict), rows);
  return one;
}

async function read() {
  const key = sessionStorage.getItem("key");
  const response = await fetch("/v1/ab", { headers: key ? { Authorization: `Bearer ${key}` } : {} });
  const said = await response.json();
  if (!response.ok) throw new Error(response.status === 401 ? "This server asks for a key: chat first, then come back in the same tab." : said.error.message);
  place.replaceChildren();
  if (said.split) {
    const thumbs = [said.split.a, said.split.b].map((one, i) => ["AB"[i], one.model, one.users, one.up, one.down]);
    const share = ` ${percent(said.share)} of the users get the second model.`;
    place.append(section("Users divided between two", said.split, table(["", "model", "users", "good", "bad"], thumbs)), make("p", `One user counts once, by the first answer that they judged.${share}`, { class: "muted" }));
  }
  if (said.side) {
    const { wins, ties, losses } = said.side.verdict;
    const rows = [["A", said.side.a, wins], ["B", said.side.b, losses], ["", "alike", ties]];
    place.append(section("Side by side", said.side, table(["", "model", "better"], rows)), make("p", "One conversation counts once.", { class: "muted" }));
  }
  if (!said.split && !said.side) place.append(make("p", "Nothing is compared: start the server with --against or --base."));
}

read().catch((error) => place.replaceChildren(make("p", error.message, { class: "problem" })));
