// What a person is told when something stands in the way: a title, and what can be done.

export class Trouble extends Error {
  constructor(title, advice = "") {
    super(title);
    this.title = title;
    this.advice = advice;
  }
}

export const NOT_SECURE = new Trouble(
  "This page may not use the microphone here.",
  "Browsers allow it on https:// addresses and on localhost only. Open the page under one of these.",
);

export function microphoneTrouble(error) {
  switch (error.name) {
    case "NotAllowedError":
      return new Trouble("The microphone is not allowed.", "Allow it for this page in the browser's address bar, then start again.");
    case "NotFoundError":
      return new Trouble("No microphone was found.", "Connect one, then start again.");
    case "NotReadableError":
      return new Trouble("The microphone is in use.", "Close the other program that uses it, then start again.");
    default:
      return new Trouble("The microphone could not be started.", error.message);
  }
}

export const MICROPHONE_LOST = new Trouble("The microphone is gone.", "Connect it again, then start again.");
export const SILENT_SERVER = new Trouble("The server does not answer.", "It may be busy or stopped. Try again in a moment.");

const WHY_REFUSED = {
  not_allowed: ["This key opens nothing here.", "It is mistyped, has expired or was revoked. Enter another."],
  forbidden: ["This key may not be used like this.", ""],
};

const WHY_NOT_READY = {
  queue_full: ["The server is full, and so is its queue.", "Every seat is taken, and too many wait already."],
  too_many_sessions: ["Your key has no conversation left.", "As many are open with it as it allows."],
  too_many_starts: ["Too many conversations in a short time.", "Your key allows only so many a minute."],
  day_spent: ["Today's time is used up.", "Your key has only so much a day."],
  too_many_tickets: ["Too many conversations were asked for and not begun.", "Your key allows only so many."],
  full: ["The server is full.", "Every seat is taken by another conversation."],
  draining: ["The server is about to restart.", "It finishes its conversations and takes no new ones."],
  late: ["The server is too busy right now.", "It takes nobody new until those who talk are answered in time."],
  engine_lost: ["The model is not running right now.", "It is starting, or restarting."],
};

// `answer` of /ready: {status, reason, message, retryAfterS}, or null when nobody answers.
export function refusalTrouble(answer, settingsChanged) {
  if (answer === null) return new Trouble("The server cannot be reached.", "It is stopped, or the network is down.");
  if (answer.status === 503 || answer.status === 429) {
    const [title, detail] = WHY_NOT_READY[answer.reason] ?? ["The server takes no new conversation now.", answer.message];
    const again = answer.retryAfterS ? ` Try again in ${duration(answer.retryAfterS)}.` : " Try again in a moment.";
    return new Trouble(title, detail + again);
  }
  if (answer.reason in WHY_REFUSED) {
    const [title, detail] = WHY_REFUSED[answer.reason];
    return new Trouble(title, detail || answer.message);
  }
  if (settingsChanged) return new Trouble("The server refused the settings.", "Press Defaults under Settings, then start again.");
  return new Trouble("The server did not take the conversation.", "Someone may have been faster: try again. If this server asks for a key, put #key=… at the end of the page's address.");
}

// `said` is the last error message of the server's, a sentence for people.
export function closeTrouble(code, reason, said) {
  const detail = said || reason;
  if (reason === "session_limit") return new Trouble("This conversation has lasted as long as it may.", "Start another.");
  if (code === 1013 && reason in WHY_NOT_READY && reason !== "full") {
    return new Trouble(WHY_NOT_READY[reason][0], join(detail, "Try again later."));
  }
  switch (code) {
    case 1000:
    case 1005:
      return null; // an ordinary end
    case 1007:
      return new Trouble("The server could not understand the sound.", detail);
    case 1008:
      return new Trouble("The server ended the conversation.", detail || "It heard nothing for too long.");
    case 1009:
      return new Trouble("The server ended the conversation: a message was too large.", detail);
    case 1011:
      return new Trouble("This conversation failed on the server.", join(detail, "Others are not affected; start again."));
    case 1012:
      return new Trouble("The server is restarting.", join(detail, "Start again in a moment."));
    case 1013:
      return new Trouble("The server is full.", join(detail, "Try again in a moment."));
    default:
      return new Trouble("The connection to the server broke.", join(detail, "Start again."));
  }
}

// `queue` as the server tells it: {place, eta_s}, the time null while nothing is known.
export function queueWords({ place, eta_s: etaS }) {
  const ahead = place === 1 ? "You are next" : `You are number ${place} in the queue`;
  const wait = Number.isFinite(etaS) && etaS > 0 ? `, in about ${duration(etaS)}` : "";
  return `Every seat is taken. ${ahead}${wait}.`;
}

// The server is replaced while it carries this conversation.
export function goingAwayWords({ s: seconds }) {
  if (seconds <= 0) return "The server is being replaced: this conversation ends now.";
  return `The server is being replaced. This conversation can go on for ${duration(seconds)}; the next one finds the new server.`;
}

export function termWords({ ends_in_s: endsInS }) {
  return `This conversation ends in ${duration(endsInS)}.`;
}

function duration(seconds) {
  if (seconds < 90) return `${Math.ceil(seconds)} seconds`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} minutes`;
  return `${Math.round(seconds / 3600)} hours`;
}

const LOSSES = [
  ["of your sound (the network is slow)", ["network"]],
  ["of your sound (it came faster than speech)", ["too_fast"]],
  ["of your sound (the server is busy)", ["overflow", "lag", "fault"]],
  ["of the answer (the connection is slow)", ["reader", "outbox"]],
];
const FRAME_S = 0.08;

// `frames` lost so far, of 80 ms each, by cause: the page's own and what the server reports.
export function lossWords(frames) {
  const parts = [];
  for (const [what, causes] of LOSSES) {
    const lost = causes.reduce((sum, cause) => sum + (frames[cause] ?? 0), 0);
    if (lost > 0) parts.push(`${(lost * FRAME_S).toFixed(1)} s ${what}`);
  }
  return parts.length ? `Left out so far: ${parts.join(", ")}.` : "";
}

// `ms` of the server's latency report, {part: {p50, ...}}; null where it was not asked.
export function serverWords(ms) {
  const parts = Object.entries(ms ?? {}).filter(([, told]) => Number.isFinite(told?.p50));
  const words = parts.map(([part, { p50 }]) => `${part} ${p50.toFixed(1)} ms`);
  return words.length ? `Of which at the server: ${words.join(", ")}.` : "";
}

function join(detail, advice) {
  if (!detail) return advice;
  return /[.!?]$/.test(detail) ? `${detail} ${advice}` : `${detail}. ${advice}`;
}
