// Kyutai's chat protocol, the client's side: the first byte of a message is its kind.

const HANDSHAKE = 0;
const AUDIO = 1;
const TEXT = 2;
const METADATA = 4;
const ERROR = 5;
const COLOURED_TEXT = 7;
const utf8 = new TextDecoder();

export function audioMessage(page) {
  const message = new Uint8Array(page.length + 1);
  message[0] = AUDIO;
  message.set(page, 1);
  return message;
}

// {kind, ...} or null for what means nothing here: unknown kinds are discarded, as the protocol asks.
export function parse(message) {
  if (!(message instanceof ArrayBuffer) || !message.byteLength) return null;
  const bytes = new Uint8Array(message);
  const payload = bytes.subarray(1);
  switch (bytes[0]) {
    case HANDSHAKE:
      return { kind: "handshake" };
    case AUDIO:
      return payload.length ? { kind: "audio", payload } : null;
    case TEXT:
      return { kind: "text", text: utf8.decode(payload) };
    case COLOURED_TEXT:
      return { kind: "text", text: utf8.decode(payload.subarray(1)) };
    case METADATA:
      return metadata(payload);
    case ERROR:
      return { kind: "error", message: utf8.decode(payload) };
    default:
      return null;
  }
}

function metadata(payload) {
  try {
    return { kind: "metadata", value: JSON.parse(utf8.decode(payload)) };
  } catch {
    return null;
  }
}
