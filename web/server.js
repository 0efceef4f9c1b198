// The server that this page came from.

const base = new URL(".", location.href);

export function chatAddress(parameters) {
  const url = new URL("api/chat", base);
  url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
  url.search = new URLSearchParams(parameters);
  return url;
}

// /info as an object, {} where it has none or asks for a key that is not `key`.
export async function info(key) {
  try {
    const headers = key ? { Authorization: `Bearer ${key}` } : {};
    const response = await fetch(new URL("info", base), { cache: "no-store", headers });
    return response.ok ? await response.json() : {};
  } catch {
    return {};
  }
}

// Whether conversations here need a ticket, and so a key of a tenant. A server that does not say needs none.
export async function wantsTicket() {
  try {
    const response = await fetch(new URL("api/ticket", base), { cache: "no-store" });
    return response.ok && (await response.json()).wanted === true;
  } catch {
    return false;
  }
}

// A key for a ticket: {ticket} where it was given, else why not, as `ready` tells it. Null: no answer.
export async function askForTicket(key) {
  const headers = { Authorization: `Bearer ${key}` };
  return asked("api/ticket", { method: "POST", headers });
}

// Why a conversation was refused: a WebSocket hides the HTTP answer from a page, so /ready is asked. Null: no answer.
export async function ready() {
  return asked("ready", {});
}

async function asked(path, options) {
  let response;
  try {
    response = await fetch(new URL(path, base), { cache: "no-store", signal: AbortSignal.timeout(5000), ...options });
  } catch {
    return null;
  }
  const body = await response.json().catch(() => ({}));
  return {
    status: response.status,
    ticket: response.status === 201 && typeof body?.ticket === "string" ? body.ticket : null,
    reason: String(body?.reason ?? ""),
    message: String(body?.message ?? ""),
    retryAfterS: Number(response.headers.get("Retry-After")) || null,
  };
}
