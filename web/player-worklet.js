// The loudspeaker's end of the jitter buffer; runs in the audio thread.
import { JitterBuffer } from "./jitter-buffer.js";

const REPORT_EVERY_BLOCKS = 64; // of 128 samples: 170 ms at 48 kHz

class Player extends AudioWorkletProcessor {
  constructor() {
    super();
    this.buffer = new JitterBuffer(sampleRate);
    this.blocks = 0;
    this.running = true;
    this.port.onmessage = ({ data }) => {
      if (data === "stop") this.running = false;
      else this.buffer.push(data);
    };
  }

  process(_inputs, [channels]) {
    this.buffer.pull(channels[0]);
    for (const other of channels.slice(1)) other.set(channels[0]);
    this.blocks += 1;
    if (this.blocks % REPORT_EVERY_BLOCKS === 0) {
      const { bufferedMs, underruns, droppedSamples, playedSamples } = this.buffer;
      this.port.postMessage({ bufferedMs, underruns, droppedSamples, playedSamples });
    }
    return this.running;
  }
}

registerProcessor("player", Player);
