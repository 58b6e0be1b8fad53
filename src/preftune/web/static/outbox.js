// What the server has not confirmed yet, kept in this browser: drafts and judgements, each by its assignment and person. They hold what the
// rater said and no token. What is confirmed is taken out.

const PREFIX = "preftune:";

function nameOf(kind, assignment) {
  return `${PREFIX}${kind}:${assignment}`;
}

/** Keep something; returns whether it could be kept. */
export function keep(kind, assignment, value) {
  try {
    localStorage.setItem(nameOf(kind, assignment), JSON.stringify(value));
    return true;
  } catch {
    return false; // storage is full or switched off: the page itself still holds it
  }
}

/** What is kept of an assignment for a person, or null. */
export function kept(kind, assignment, person) {
  try {
    const value = JSON.parse(localStorage.getItem(nameOf(kind, assignment)));
    return value?.person === person ? value : null;
  } catch {
    return null;
  }
}

/** Take something out. */
export function drop(kind, assignment) {
  try {
    localStorage.removeItem(nameOf(kind, assignment));
  } catch {
    return; // it could not be kept either
  }
}

function waiting(person) {
  try {
    const names = Object.keys(localStorage).filter((name) => name.startsWith(`${PREFIX}send:`));
    return names.map((name) => name.slice(`${PREFIX}send:`.length)).filter((assignment) => kept("send", assignment, person));
  } catch {
    return [];
  }
}

/** Send what waits, except for the assignment that is open. Returns how many were sent and the last one refused, if any. */
export async function flush(person, post, errorOf, open) {
  let count = 0;
  let refused = null;
  for (const assignment of waiting(person)) {
    if (assignment === open) continue;
    const value = kept("send", assignment, person);
    try {
      const response = await post(value.url, new URLSearchParams(value.fields));
      if (response.ok) {
        drop("send", assignment);
        drop("draft", assignment);
        count += 1;
      } else if (response.status !== 401 && response.status < 500) {
        // It will never be taken as it is: keep what was said as a draft, which the page of the item shows.
        refused = { assignment, error: await errorOf(response) };
        keep("draft", assignment, { person, version: -1, fields: value.fields });
        drop("send", assignment);
      }
    } catch {
      break; // still no connection
    }
  }
  return { count, refused };
}
