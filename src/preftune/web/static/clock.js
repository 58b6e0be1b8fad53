// How long somebody has really been at a page: seconds in which it was visible and something moved within the last minute.

const IDLE_SECONDS = 60;

/** Start counting from a number of seconds; returns a function that tells the count. */
export function startClock(from) {
  let seconds = Number.isFinite(from) && from > 0 ? from : 0;
  let moved = performance.now();
  for (const kind of ["pointermove", "pointerdown", "keydown", "wheel", "scroll", "touchstart", "input"]) {
    document.addEventListener(kind, () => { moved = performance.now(); }, { passive: true, capture: true });
  }
  let last = performance.now();
  const count = () => {
    const now = performance.now();
    const active = document.visibilityState === "visible" && now - moved < IDLE_SECONDS * 1000;
    // A tab that slept counts for what it slept no more than the idle cap.
    if (active) seconds += Math.min((now - last) / 1000, IDLE_SECONDS);
    last = now;
    return Math.round(seconds * 10) / 10;
  };
  setInterval(count, 1000);
  return count;
}
