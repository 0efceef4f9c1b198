// The page: one button, two voices, a transcript.

import { Conversation } from "./conversation.js";
import { forgetKey, keepKey, keptKey, objection, ticket } from "./key.js";
import { info, wantsTicket } from "./server.js";
import { queueWords, serverWords } from "./words.js";

const INFO_EVERY_MS = 10_000;
const FIGURES_EVERY_MS = 250;
const STATUS = {
  idle: "Your browser will ask for the microphone. Headphones sound best.",
  opening: "Connecting…",
  live: "Just speak. It hears you while it talks.",
  away: "The connection broke. Coming back to the conversation…",
  ended: "Ended. Press the button to talk again.",
};
const LABEL = { idle: "Start talking", opening: "Cancel", live: "Stop", away: "Stop", ended: "Talk again" };

const KNOWN_MODELS = [
  [/parrot/i, "Parrot", "Talk: it repeats what you say about a second later."],
  [/pass-?through/i, "Echo", "Talk: you hear yourself, there and back, without a model."],
  [/moshi/i, "Moshi", null],
];

const at = (id) => document.getElementById(id);
const form = at("settings");
// The key of a server that asks for one: after the # of the page's address, which no server or log sees.
const wishes = new URLSearchParams(location.hash.slice(1));
const key = wishes.get("key");
let conversation = null;
const ticketed = wantsTicket(); // once: a server does not change its mind while a page is open

// For tests and the curious: what the current conversation has counted.
export const current = () => conversation;

at("toggle").addEventListener("click", () => {
  if (conversation && !conversation.ended) conversation.stop();
  else start();
});

at("key-use").addEventListener("click", useKey);
at("key").addEventListener("keydown", (event) => {
  if (event.key === "Enter") useKey();
});

// Who closes the page is gone for good: its seat need not be kept.
addEventListener("pagehide", () => conversation?.stop());

function useKey() {
  const key = at("key").value.trim();
  at("key").value = "";
  if (!key) return;
  keepKey(key);
  start();
}

at("forget").addEventListener("click", () => {
  forgetKey();
  showKey();
});

// Asks for a key where one is wanted and none is kept. Whether there is one now, or none is needed.
async function showKey() {
  const wanted = await ticketed;
  at("key-form").hidden = !wanted || keptKey() !== "";
  at("forget").hidden = !wanted || keptKey() === "";
  return at("key-form").hidden;
}

async function start() {
  if (!form.reportValidity()) {
    form.closest("details").open = true;
    form.reportValidity();
    return;
  }
  if (!(await showKey())) {
    at("key").focus();
    return;
  }
  if (conversation && !conversation.ended) return; // pressed twice
  const wanted = await ticketed;
  at("text").textContent = "";
  at("alert").hidden = true;
  at("loss").textContent = "";
  const { parameters, settingsChanged } = settings(wanted);
  conversation = new Conversation({
    parameters, settingsChanged, onState: show, onText: write,
    ticket: wanted ? ticket : null,
    objection: wanted ? objection : null,
    onWait: (queue) => (at("status").textContent = queueWords(queue)),
    onNotice: (message) => alertWith(message, ""),
    onLoss: (words) => (at("loss").textContent = words),
    onEnd: (trouble) => {
      if (trouble) alertWith(trouble.title, trouble.advice);
      showKey();
      refreshInfo();
    },
  });
  conversation.start();
  requestAnimationFrame(drawLevels);
}

// What the form asks for, in the web client's spelling; seeds are left out where the server is to choose.
function settings(wanted) {
  const values = new FormData(form);
  const parameters = {};
  let settingsChanged = false;
  for (const [name, value] of values) {
    if (name !== "seed") parameters[name] = value;
    settingsChanged ||= value !== form.elements[name].defaultValue;
  }
  if (key && !wanted) parameters.auth_id = key;
  if (wishes.has("latency")) parameters.latency = 1;
  if (values.get("seed")) parameters.text_seed = parameters.audio_seed = values.get("seed");
  return { parameters, settingsChanged };
}

function show(state) {
  document.body.dataset.state = state;
  at("toggle-label").textContent = LABEL[state];
  at("status").textContent = STATUS[state];
  if (state === "live") refreshInfo();
}

function write(piece) {
  const text = at("text");
  const follows = text.scrollTop + text.clientHeight >= text.scrollHeight - 24;
  text.append(text.textContent ? piece : piece.trimStart());
  if (follows) text.scrollTop = text.scrollHeight;
}

function alertWith(title, advice) {
  const strong = document.createElement("strong");
  strong.textContent = title;
  at("alert").replaceChildren(strong, advice);
  at("alert").hidden = false;
}

function drawLevels() {
  const { you, it } = conversation.levels;
  for (const [name, value] of [["you", you], ["it", it]]) {
    at(`orb-${name}`).style.setProperty("--level", value.toFixed(3));
    at(`level-${name}`).style.setProperty("--level", value.toFixed(3));
  }
  if (!conversation.ended) requestAnimationFrame(drawLevels);
}

function drawFigures() {
  if (!conversation?.live) return;
  const { you, it } = conversation.levels;
  at("level-you").setAttribute("aria-valuenow", Math.round(100 * you));
  at("level-it").setAttribute("aria-valuenow", Math.round(100 * it));
  const trip = conversation.roundTrips.medianMs;
  at("round-trip").textContent = trip === null ? "…" : `${Math.round(trip)} ms`;
  at("round-trip").title = serverWords(conversation.serverMs);
  at("buffered").textContent = `${Math.round(conversation.speaker.report.bufferedMs)} ms`;
  const seconds = Math.floor((performance.now() - conversation.startedMs) / 1000);
  at("elapsed").textContent = `${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, "0")}`;
}

async function refreshInfo() {
  if (document.hidden) return;
  const told = await info(key);
  const model = modelName(told);
  if (model) {
    at("model").textContent = model;
    at("model").hidden = false;
    const [, name, lead] = KNOWN_MODELS.find(([pattern]) => pattern.test(model)) ?? [];
    if (name) at("name-it").textContent = name;
    if (lead) at("lead").textContent = lead;
  }
  const seats = freeSeats(told);
  at("seats").hidden = seats === null;
  if (seats !== null) at("seats").textContent = seats.free > 0 ? `${seats.free} of ${seats.all} seats free` : "full";
}

// A folder's path is no name for people: its last part is.
function modelName({ model }) {
  return typeof model === "string" ? model.split("/").filter(Boolean).at(-1) ?? "" : "";
}

function freeSeats({ slots_used: used, slots_free: free }) {
  return Number.isInteger(used) && Number.isInteger(free) ? { free, all: used + free } : null;
}

showKey();
refreshInfo();
setInterval(refreshInfo, INFO_EVERY_MS);
setInterval(drawFigures, FIGURES_EVERY_MS);
