// Ogg/Opus payloads to the loudspeaker: decoder worker, jitter buffer in the audio thread, analyser for the meter.

const MODEL_RATE_HZ = 24000;
const DECODED_BLOCK_S = 0.02;

export async function openSpeaker(context) {
  await context.audioWorklet.addModule(new URL("player-worklet.js", import.meta.url));
  return new Speaker(context);
}

class Speaker {
  constructor(context) {
    this.report = { bufferedMs: 0, underruns: 0, droppedSamples: 0, playedSamples: 0 };
    this.player = new AudioWorkletNode(context, "player", { numberOfInputs: 0, outputChannelCount: [1] });
    this.player.port.onmessage = ({ data }) => (this.report = data);
    this.analyser = new AnalyserNode(context, { fftSize: 1024 });
    this.player.connect(this.analyser).connect(context.destination);

    this.context = context;
    this.restart();
  }

  // A stream of its own for each connection.
  restart() {
    this.decoder?.terminate();
    this.decoder = new Worker(new URL("vendor/opus-recorder/decoderWorker.min.js", import.meta.url));
    this.decoder.onmessage = ({ data }) => {
      if (data) this.player.port.postMessage(data[0], [data[0].buffer]);
    };
    this.decoder.postMessage({
      command: "init",
      bufferLength: Math.round(DECODED_BLOCK_S * this.context.sampleRate),
      decoderSampleRate: MODEL_RATE_HZ,
      outputBufferSampleRate: this.context.sampleRate,
      resampleQuality: 3,
    });
  }

  play(payload) {
    // The decoder reads from the start of the underlying buffer: hand it one of its own.
    const pages = payload.slice();
    this.decoder.postMessage({ command: "decode", pages }, [pages.buffer]);
  }

  close() {
    this.decoder.terminate();
    this.player.port.postMessage("stop");
    this.player.disconnect();
    this.analyser.disconnect();
  }
}
