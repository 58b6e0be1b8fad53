// Live comparison: both answers as they come, as plain text, and the time that somebody has spent on them.

import { say } from "./app.js";
import { startClock } from "./clock.js";

const live = document.getElementById("live");
const vote = document.getElementById("vote");
const state = document.getElementById("state");

if (vote) {
  const clock = startClock(0);
  vote.addEventListener("submit", () => {
    vote.elements.active_seconds.value = String(clock());
  });
}

if (live?.dataset.stream) {
  const source = new EventSource(live.dataset.stream);
  const panes = [0, 1].map((side) => document.getElementById(`stream-${side}`));
  // After a break the server begins anew, and so do we.
  source.addEventListener("open", () => panes.forEach((pane) => pane.replaceChildren()));
  source.addEventListener("message", (event) => {
    const { side, text } = JSON.parse(event.data);
    panes[side].append(text); // as text, whatever it is
  });
  source.addEventListener("done", () => {
    source.close();
    say("Both answers are complete.");
    const again = `/live?run=${live.dataset.run}`;
    if (new FormData(vote).has("choice") || new FormData(vote).has("all_bad")) {
      state.replaceChildren("Both are complete. ", Object.assign(document.createElement("a"), { href: again, textContent: "Show them formatted" }));
      document.getElementById("stop")?.remove();
    } else {
      location.replace(again);
    }
  });
  source.addEventListener("error", () => {
    state.textContent = source.readyState === EventSource.CLOSED ? "The answers can no longer be shown. Load the page again." : "The connection broke; trying again.";
  });
}
