// The way back to a conversation whose connection broke: the server's token, and when to try it.

const CUT_OFF_CODES = [1001, 1006, 1012]; // it broke, or whoever held it went away
const FIRST_PAUSE_MS = 100;
const LONGEST_PAUSE_MS = 2_000;
const SPREAD = 0.5; // clients of a gateway that died shall not come all at once

export class WayBack {
  constructor(nowMs = () => performance.now()) {
    this.nowMs = nowMs;
    this.token = null;
    this.graceMs = 0;
    this.untilMs = null; // while away
    this.pauseMs = 0;
  }

  // `resume` of the server's metadata.
  keep({ token, grace_s: graceS }) {
    if (typeof token !== "string" || !(graceS > 0)) return;
    this.token = token;
    this.graceMs = 1_000 * graceS;
  }

  leadsBack(code) {
    return this.token !== null && CUT_OFF_CODES.includes(code);
  }

  get away() {
    return this.untilMs !== null;
  }

  leftMs() {
    return this.untilMs - this.nowMs();
  }

  // How long to wait before the next attempt, 0 at first; null: the conversation is lost.
  nextPauseMs() {
    const first = !this.away;
    if (first) this.untilMs = this.nowMs() + this.graceMs;
    const pauseMs = first ? 0 : this.pauseMs * (1 + SPREAD * Math.random());
    this.pauseMs = first ? FIRST_PAUSE_MS : Math.min(2 * this.pauseMs, LONGEST_PAUSE_MS);
    return pauseMs < this.leftMs() ? pauseMs : null;
  }

  arrived() {
    this.untilMs = null;
  }
}
