// One conversation: microphone, connection and loudspeaker, from the press of the button to its end.

import { PAGES_PER_FRAME, PAGE_MS, openMicrophone } from "./microphone.js";
import { RoundTrips } from "./round-trip.js";
import { chatAddress, ready } from "./server.js";
import { openSpeaker } from "./speaker.js";
import { WayBack } from "./way-back.js";
import { MICROPHONE_LOST, NOT_SECURE, SILENT_SERVER, Trouble, closeTrouble, goingAwayWords, lossWords, microphoneTrouble, refusalTrouble, termWords } from "./words.js";
import { audioMessage, parse } from "./wire.js";

const HANDSHAKE_TIMEOUT_MS = 20_000;
const SILENCE_TIMEOUT_MS = 10_000; // the server sends sound every 80 ms; this long without any means it is gone
const LOST = 1006; // as a socket says that broke
const SECOND_LOOK_MS = 1_500;
const MAX_WAITING_MS = 1_000; // sound that may wait for the network; older than that it is no conversation

// Calls back: onState("opening" | "live" | "away" | "ended"), onText(string), onNotice(string), onLoss(string), onWait(queue), onEnd(Trouble | null), once.
// `ticket` gives what opens one conversation, `objection` says why none may start; null where the server wants no ticket.
export class Conversation {
  constructor({ parameters, settingsChanged, ticket, objection, onState, onText, onNotice, onLoss, onWait, onEnd }) {
    Object.assign(this, { parameters, settingsChanged, ticket, objection, onState, onText, onNotice, onLoss, onWait, onEnd });
    this.roundTrips = new RoundTrips();
    this.pagesSent = 0;
    this.bytesSent = 0;
    this.lost = {}; // frames by cause
    this.audioMessages = 0;
    this.serverMs = null; // by part, where the server was asked
    this.said = "";
    this.wayBack = new WayBack();
    this.live = false;
    this.ended = false;
    this.startedMs = null;
  }

  async start() {
    this.onState("opening");
    try {
      if (!window.isSecureContext || !navigator.mediaDevices?.getUserMedia) throw NOT_SECURE;
      this.context = new AudioContext({ latencyHint: "interactive" });
      const resumed = this.context.resume();
      const microphone = await openMicrophone(this.context).catch((error) => Promise.reject(microphoneTrouble(error)));
      if (this.ended) return microphone.close();
      this.microphone = microphone;
      const speaker = await openSpeaker(this.context);
      if (this.ended) return speaker.close();
      this.speaker = speaker;
      await resumed;
      if (!this.ended) await this.connect();
    } catch (error) {
      this.end(error instanceof Trouble ? error : new Trouble("The browser could not start the sound.", error.message));
    }
  }

  stop() {
    this.end(null);
  }

  // Asked once per animation frame, so cheap.
  get levels() {
    return { you: level(this.live && this.microphone?.analyser), it: level(this.live && this.speaker?.analyser) };
  }

  async connect() {
    const address = chatAddress({ ...this.parameters, resumable: 1, ...(await this.admission()) });
    if (this.ended) return;
    this.listenTo(new WebSocket(address));
    this.expect(HANDSHAKE_TIMEOUT_MS);
  }

  listenTo(socket) {
    this.socket = socket;
    socket.binaryType = "arraybuffer";
    socket.onmessage = ({ data }) => this.receive(parse(data));
    socket.onclose = (event) => this.closed(event);
  }

  receive(event) {
    if (event === null || this.ended) return;
    if (this.live) this.expect(SILENCE_TIMEOUT_MS);
    switch (event.kind) {
      case "handshake":
        if (this.wayBack.away) this.goOn();
        else if (!this.live) this.goLive();
        break;
      case "audio":
        this.audioMessages += 1;
        this.roundTrips.frameReceived(performance.now());
        this.speaker.play(event.payload);
        break;
      case "text":
        this.onText(event.text);
        break;
      case "error":
        this.said = event.message;
        this.onNotice(event.message);
        break;
      case "metadata":
        if (event.value?.type === "dropped") this.lose(event.value.frames);
        if (event.value?.type === "latency") this.serverMs = event.value.ms;
        if (event.value?.queue) this.wait(event.value.queue);
        if (event.value?.session) this.onNotice(termWords(event.value.session));
        if (event.value?.going_away) this.onNotice(goingAwayWords(event.value.going_away));
        if (event.value?.resume) this.wayBack.keep(event.value.resume);
        break;
      default: // nothing that a person needs to read
    }
  }

  wait(queue) {
    this.expect(HANDSHAKE_TIMEOUT_MS);
    this.onWait(queue);
  }

  goLive() {
    this.live = true;
    this.startedMs = performance.now();
    this.expect(SILENCE_TIMEOUT_MS);
    this.speak();
    this.onState("live");
  }

  speak() {
    this.microphone.start((page, isHeader) => this.send(page, isHeader), () => this.end(MICROPHONE_LOST));
  }

  // The connection is gone and the server keeps the conversation for a while.
  comeBack(trouble) {
    this.drop();
    this.live = false;
    clearTimeout(this.timer);
    this.microphone.pause();
    if (!this.wayBack.away) this.onState("away");
    const pauseMs = this.wayBack.nextPauseMs();
    if (pauseMs === null) return this.end(trouble);
    this.timer = setTimeout(() => this.reconnect(trouble), pauseMs);
  }

  async reconnect(trouble) {
    this.expect(this.wayBack.leftMs());
    const admission = await this.admission().catch(() => null);
    if (this.ended) return;
    if (admission === null) return this.comeBack(trouble);
    this.listenTo(new WebSocket(chatAddress({ ...this.parameters, resume: this.wayBack.token, ...admission })));
  }

  // What opens the door beside the question: a ticket, where the server wants one.
  async admission() {
    return this.ticket ? { ticket: await this.ticket() } : {};
  }

  // Back in the same conversation: the sound streams begin anew.
  goOn() {
    this.wayBack.arrived();
    this.live = true;
    this.expect(SILENCE_TIMEOUT_MS);
    this.roundTrips = new RoundTrips();
    this.pagesSent = this.bytesSent = 0;
    this.speaker.restart();
    this.speak();
    this.onState("live");
  }

  send(page, isHeader) {
    if (this.socket.readyState !== WebSocket.OPEN) return;
    if (!isHeader) {
      if (this.waitingMs > MAX_WAITING_MS) return this.lose({ network: 1 / PAGES_PER_FRAME });
      this.pagesSent += 1;
      this.bytesSent += page.length;
      if (this.pagesSent % PAGES_PER_FRAME === 0) this.roundTrips.frameSent(performance.now());
    }
    this.socket.send(audioMessage(page));
  }

  // Sound that the browser still holds because the network takes no more.
  get waitingMs() {
    return this.pagesSent ? (this.socket.bufferedAmount / this.bytesSent) * this.pagesSent * PAGE_MS : 0;
  }

  lose(frames) {
    for (const [cause, count] of Object.entries(frames ?? {})) {
      if (count > 0) this.lost[cause] = (this.lost[cause] ?? 0) + count;
    }
    this.onLoss(lossWords(this.lost));
  }

  async closed({ code, reason }) {
    if (this.ended) return;
    if (this.wayBack.away || (this.live && this.wayBack.leadsBack(code))) this.comeBack(closeTrouble(code, reason, this.said));
    else if (this.live) this.end(closeTrouble(code, reason, this.said));
    else if (code !== 1006) this.end(closeTrouble(code, reason, this.said) ?? SILENT_SERVER);
    else this.end(refusalTrouble(await this.obstacle(), this.settingsChanged));
  }

  // A gateway's view of the slots may be a second old: where it sees no obstacle, it is asked once more.
  async obstacle() {
    const objection = this.objection ? await this.objection() : null;
    if (objection) return objection;
    const answer = await ready();
    if (answer?.status !== 200) return answer;
    await new Promise((resolve) => setTimeout(resolve, SECOND_LOOK_MS));
    return ready();
  }

  expect(timeoutMs) {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => {
      if (this.live && this.wayBack.leadsBack(LOST)) this.comeBack(SILENT_SERVER);
      else this.end(SILENT_SERVER);
    }, timeoutMs);
  }

  drop() {
    if (!this.socket) return;
    this.socket.onmessage = this.socket.onclose = null;
    this.socket.close(1000);
  }

  end(trouble) {
    if (this.ended) return;
    this.ended = true;
    this.live = false;
    clearTimeout(this.timer);
    this.drop();
    this.microphone?.close();
    this.speaker?.close();
    this.context?.close();
    this.onState("ended");
    this.onEnd(trouble);
  }
}

const samples = new Float32Array(1024);

// Root mean square on a scale that looks like loudness: 0 at -54 dB, 1 at -6 dB.
function level(analyser) {
  if (!analyser) return 0;
  analyser.getFloatTimeDomainData(samples);
  const rms = Math.sqrt(samples.reduce((sum, value) => sum + value * value, 0) / samples.length);
  return Math.min(1, Math.max(0, (20 * Math.log10(rms + 1e-9) + 54) / 48));
}
