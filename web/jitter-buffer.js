// Sound between the network and the loudspeaker. Pure: counts samples, knows no clock.
//
// An answer comes as one block of 80 ms every 80 ms. Playback starts when a block is there and a small slack has passed
// (90 ms together); each time it runs dry the slack grows, up to 240 ms together; what piles up further is dropped, with
// a short cross-fade. Sound that stays away for long (a pause of the server's) is no reason to grow again at its start.

const BLOCK_MS = 80;
const FIRST_SLACK_MS = 10;
const SLACK_STEP_MS = 20;
const MAX_SLACK_MS = 160;
const DROP_ABOVE_MS = 80; // beyond block and slack
const FADE_MS = 5;

export class JitterBuffer {
  constructor(sampleRate) {
    this.samplesPerMs = sampleRate / 1000;
    this.slackMs = FIRST_SLACK_MS;
    this.chunks = [];
    this.buffered = 0; // samples
    this.playing = false;
    this.waitSamples = null; // slack that is still to pass before playback starts
    this.underruns = 0;
    this.droppedSamples = 0;
    this.playedSamples = 0;
  }

  push(samples) {
    this.chunks.push(samples);
    this.buffered += samples.length;
    const target = this.samples(BLOCK_MS + this.slackMs);
    if (this.buffered > target + this.samples(DROP_ABOVE_MS)) this.drop(this.buffered - target);
  }

  // Fills `out` (Float32Array); silence where there is nothing to play.
  pull(out) {
    out.fill(0);
    let start = 0;
    if (!this.playing) {
      if (this.waitSamples === null && this.buffered >= this.samples(BLOCK_MS)) this.waitSamples = this.samples(this.slackMs);
      if (this.waitSamples === null) return;
      start = Math.min(out.length, this.waitSamples);
      this.waitSamples -= start;
      if (this.waitSamples > 0) return;
      this.playing = true;
      this.waitSamples = null;
    }
    const taken = this.take(out.subarray(start));
    this.playedSamples += taken;
    if (taken < out.length - start) {
      this.playing = false;
      this.underruns += 1;
      this.slackMs = Math.min(MAX_SLACK_MS, this.slackMs + SLACK_STEP_MS);
    }
  }

  get bufferedMs() {
    return this.buffered / this.samplesPerMs;
  }

  samples(ms) {
    return Math.round(ms * this.samplesPerMs);
  }

  take(out) {
    let filled = 0;
    while (filled < out.length && this.chunks.length) {
      const chunk = this.chunks[0];
      const count = Math.min(chunk.length, out.length - filled);
      out.set(chunk.subarray(0, count), filled);
      filled += count;
      if (count === chunk.length) this.chunks.shift();
      else this.chunks[0] = chunk.subarray(count);
    }
    this.buffered -= filled;
    return filled;
  }

  drop(count) {
    const fade = Math.min(this.samples(FADE_MS), this.buffered - count);
    const old = new Float32Array(count);
    this.take(old);
    const joint = new Float32Array(fade);
    this.take(joint);
    for (let i = 0; i < Math.min(fade, count); i += 1) {
      const share = (i + 1) / (fade + 1);
      joint[i] = joint[i] * share + old[i] * (1 - share);
    }
    this.chunks.unshift(joint);
    this.buffered += fade;
    this.droppedSamples += count;
  }
}
