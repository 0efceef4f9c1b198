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

// Why a conversation was refused: a WebSocket hides the HTTP answer from a page, so /ready is asked. Null: no answer.
export async function ready() {
  let response;
  try {
    response = await fetch(new URL("ready", base), { cache: "no-store", signal: AbortSignal.timeout(5000) });
  } catch {
    return null;
  }
  const body = await response.json().catch(() => ({}));
  return {
    status: response.status,
    reason: String(body?.reason ?? ""),
    message: String(body?.message ?? ""),
    retryAfterS: Number(response.headers.get("Retry-After")) || null,
  };
}
