// How long an answer takes. The protocol numbers nothing, so both sides count: answer i belongs to frame i + delay, and
// the delay is the largest that causality allows. serve_app/client/round_trip.py says the same in Python.

const RECENT = 50;
const KEPT = 4096;

export class RoundTrips {
  constructor() {
    this.sent = new Map(); // frame number -> ms
    this.sentCount = 0;
    this.receivedCount = 0;
    this.delay = null;
    this.recent = [];
  }

  frameSent(nowMs) {
    this.sent.set(this.sentCount, nowMs);
    this.sent.delete(this.sentCount - KEPT);
    this.sentCount += 1;
  }

  frameReceived(nowMs) {
    const ahead = this.sentCount - 1 - this.receivedCount;
    if (ahead >= 0 && (this.delay === null || ahead < this.delay)) {
      this.delay = ahead;
      this.recent = []; // measured under a delay that was too large
    }
    const sentMs = this.sent.get(this.receivedCount + (this.delay ?? 0));
    this.receivedCount += 1;
    if (sentMs === undefined) return;
    this.recent.push(nowMs - sentMs);
    if (this.recent.length > RECENT) this.recent.shift();
  }

  get medianMs() {
    if (!this.recent.length) return null;
    return [...this.recent].sort((a, b) => a - b)[this.recent.length >> 1];
  }
}
