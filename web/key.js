// The key of a server with tenants: entered once, kept in this tab until it is closed, never in an address.

import { askForTicket } from "./server.js";
import { refusalTrouble } from "./words.js";

const NAME = "chorus-key";

export function keptKey() {
  return sessionStorage.getItem(NAME) ?? "";
}

export function keepKey(key) {
  sessionStorage.setItem(NAME, key);
}

export function forgetKey() {
  sessionStorage.removeItem(NAME);
}

// A ticket for one conversation. Throws a Trouble in words; a key that opens nothing is forgotten.
export async function ticket() {
  const answer = await askForTicket(keptKey());
  if (answer?.ticket) return answer.ticket;
  if (answer?.status === 401) forgetKey();
  throw refusalTrouble(answer, false);
}

// Why no conversation may start, as the answer of a ticket's desk tells; null where it has no objection.
export async function objection() {
  const answer = await askForTicket(keptKey());
  return answer === null || answer.ticket ? null : answer;
}
