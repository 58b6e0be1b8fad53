// The chat page: streams answers, one or two beside each other, and sends what the visitor says of them.

const body = document.body;
const find = (id) => document.getElementById(id);
const thread = find("thread"), words = find("words"), side = find("side");
let messages = [];
let leaving = null; // stops the answers that run

function make(tag, text = "", attributes = {}) {
  const element = document.createElement(tag);
  element.textContent = text;
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

function complain(text) {
  find("problem").textContent = text;
  find("problem").hidden = !text;
}

async function askKey() {
  const shown = find("key-window");
  shown.showModal();
  await new Promise((done) => shown.addEventListener("close", done, { once: true }));
  sessionStorage.setItem("key", find("key").value);
}

// Posts to a route; asks for the key where one is needed; throws what the server says.
async function post(route, content, signal) {
  for (let again = false; ; again = true) {
    const headers = { "Content-Type": "application/json" };
    if ("keys" in body.dataset) {
      if (again || !sessionStorage.getItem("key")) await askKey();
      headers.Authorization = `Bearer ${sessionStorage.getItem("key")}`;
    }
    const response = await fetch(route, { method: "POST", headers, body: JSON.stringify(content), signal });
    if (response.ok) return response;
    if (response.status === 401 && !again && "keys" in body.dataset) continue;
    const said = await response.json().catch(() => null);
    throw new Error(said?.error?.message ?? `The server answered ${response.status}.`);
  }
}

// Yields the objects of a stream of server-sent events; throws an error that comes as one.
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) throw new Error("The answer broke off: the server is gone, or the connection.");
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const said = part.replace(/^data: /, "");
      if (said === "[DONE]") return;
      const event = JSON.parse(said);
      if (event.error) throw new Error(event.error.message);
      yield event;
    }
  }
}

// Prose as paragraphs, fenced code as blocks. All by textContent: nothing of a model's text becomes part of the page.
function show(into, text) {
  into.replaceChildren();
  text.split(/^```[^\n]*\n?/m).forEach((part, place) => {
    const kept = place % 2 ? part.replace(/\n$/, "") : part.trim();
    if (!kept) return;
    if (place % 2) {
      const block = make("pre", "", { tabindex: "0" });
      block.append(make("code", kept));
      into.append(block);
    } else into.append(make("p", kept, { dir: "auto" }));
  });
}

async function stream(answer, model, signal) {
  const response = await post("/v1/chat/completions", { model, messages: answer.messages, stream: true, max_tokens: 1024 }, signal);
  for await (const event of events(response)) {
    answer.id = event.id;
    answer.text += event.choices[0]?.delta?.content ?? "";
    answer.whole = Boolean(event.choices[0]?.finish_reason);
    const below = thread.scrollHeight - thread.scrollTop - thread.clientHeight < 80;
    show(answer.place, answer.text);
    if (below) thread.scrollTop = thread.scrollHeight;
  }
}

// The visitor agrees once to each version of the text.
async function agreed() {
  if (localStorage.getItem("consent") === body.dataset.consent) return true;
  const shown = find("consent");
  shown.returnValue = "no";
  shown.showModal();
  await new Promise((done) => shown.addEventListener("close", done, { once: true }));
  if (shown.returnValue !== "yes") return false;
  localStorage.setItem("consent", body.dataset.consent);
  return true;
}

async function say(answers, word, told) {
  complain("");
  if (!(await agreed())) return false;
  try {
    await post("/v1/feedback", { answers: answers.map(({ id }) => ({ id })), consent: body.dataset.consent, ...word });
    told.textContent = "Saved. Thank you.";
    return true;
  } catch (error) {
    complain(error.message);
    return false;
  }
}

function thumbs(answer) {
  const bar = make("div", "", { class: "words" }), told = make("span", "", { class: "said", role: "status" });
  const buttons = [["up", "Good"], ["down", "Bad"]].map(([value, name]) => [value, make("button", name, { type: "button", "aria-pressed": "false" })]);
  for (const [value, button] of buttons) {
    button.addEventListener("click", async () => {
      const back = button.getAttribute("aria-pressed") === "true";
      if (!(await say([answer], { thumb: back ? "none" : value }, told))) return;
      for (const [, other] of buttons) other.setAttribute("aria-pressed", String(other === button && !back));
      if (back) told.textContent = "Taken back.";
    });
    bar.append(button);
  }
  const edit = make("button", "Edit", { type: "button" });
  edit.addEventListener("click", () => openEditor(answer, edit, told));
  bar.append(edit, told);
  return bar;
}

function openEditor(answer, button, told) {
  button.disabled = true;
  const editor = make("div", "", { class: "edit" }), field = make("textarea", "", { "aria-label": "The answer as it should be" });
  const send = make("button", "Save the better answer", { type: "button", class: "primary" }), leave = make("button", "Cancel", { type: "button" });
  const close = () => { editor.remove(); button.disabled = false; button.focus(); };
  field.value = answer.text;
  send.addEventListener("click", async () => {
    if (!(await say([answer], { edit: field.value }, told))) return;
    if (answer.turn) answer.turn.content = field.value;
    answer.edited = field.value;
    show(answer.place, field.value);
    close();
  });
  leave.addEventListener("click", close);
  editor.append(field, send, " ", leave);
  answer.place.after(editor);
  field.focus();
}

// Which of two: the conversation goes on with the better one. Until it is said, with the first.
function which(answers, turn) {
  const bar = make("div", "", { class: "which", role: "group", "aria-label": "Which answer is better?" });
  const told = make("span", "", { class: "said", role: "status" });
  const choices = [[0, "The first is better"], ["tie", "Alike"], [1, "The second is better"]];
  const buttons = choices.map(([, name]) => make("button", name, { type: "button", "aria-pressed": "false" }));
  choices.forEach(([better], place) => {
    buttons[place].addEventListener("click", async () => {
      if (!(await say(answers, { better }, told))) return;
      buttons.forEach((button, other) => button.setAttribute("aria-pressed", String(other === place)));
      const kept = answers[better === 1 ? 1 : 0];
      turn.content = kept.edited ?? kept.text;
      answers.forEach((answer) => { answer.turn = answer === kept ? turn : null; answer.box.classList.toggle("kept", answer === kept); });
    });
  });
  bar.append(...buttons, told);
  return bar;
}

function begin(models) {
  const box = make("div", "", { class: models.length > 1 ? "answers two busy" : "answers busy" });
  const answers = models.map((model, place) => {
    const one = make("section", "", { class: "answer", "aria-label": models.length > 1 ? `Answer ${place + 1}` : "Answer" }), text = make("div", "", { class: "text" });
    if (models.length > 1) one.append(make("h2", place ? "Second" : "First"));
    one.append(text);
    box.append(one);
    return { model, box: one, place: text, text: "", id: null, whole: false, messages: messages.map((m) => ({ ...m })) };
  });
  thread.append(box);
  thread.scrollTop = thread.scrollHeight;
  return { box, answers };
}

async function ask(text) {
  complain("");
  thread.querySelector(".hint")?.remove();
  thread.append(make("div", text, { class: "mine", dir: "auto" }));
  messages.push({ role: "user", content: text });
  const here = messages;
  // Blind: which of the two stands first is drawn anew each time, and nothing on the page tells.
  const models = side?.checked ? [body.dataset.release, body.dataset.base].sort(() => (crypto.getRandomValues(new Uint8Array(1))[0] < 128 ? -1 : 1)) : ["auto"];
  const { box, answers } = begin(models);
  leaving = new AbortController();
  find("stop").hidden = false;
  find("send").disabled = true;
  const ends = await Promise.allSettled(answers.map((answer) => stream(answer, answer.model, leaving.signal)));
  find("stop").hidden = true;
  find("send").disabled = false;
  box.classList.remove("busy");
  const failed = ends.find((end) => end.status === "rejected" && end.reason.name !== "AbortError");
  if (failed) complain(failed.reason.message);
  if (here !== messages) return; // a new chat was begun meanwhile
  if (!answers[0].text) {
    here.pop(); // nothing was answered: the same question can be asked again
    if (failed) words.value ||= text;
    return;
  }
  const turn = { role: "assistant", content: answers[0].text };
  answers[0].turn = turn;
  here.push(turn);
  if (!body.dataset.consent) return;
  for (const answer of answers) if (answer.whole && answer.text.trim()) answer.box.append(thumbs(answer));
  if (answers.length > 1 && answers.every((answer) => answer.whole && answer.text.trim())) box.append(which(answers, turn));
  thread.scrollTop = thread.scrollHeight;
}

find("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = words.value.trim();
  if (!text || find("send").disabled) return;
  words.value = "";
  ask(text).finally(() => words.focus());
});
words.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  find("ask").requestSubmit();
});
find("stop").addEventListener("click", () => leaving?.abort());
find("new").addEventListener("click", () => {
  leaving?.abort();
  messages = [];
  thread.replaceChildren(make("p", "Ask something.", { class: "hint" }));
  complain("");
  words.focus();
});
