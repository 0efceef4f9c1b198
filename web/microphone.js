// The microphone to Ogg/Opus pages of two 20 ms packets at 24 kHz, as Kyutai's web client sends them.

const MODEL_RATE_HZ = 24000;
const OPUS_VOIP = 2048;
export const PAGES_PER_FRAME = 2;
export const PAGE_MS = 40;

export async function openMicrophone(context) {
  const stream = await navigator.mediaDevices.getUserMedia({
    audio: { channelCount: 1, echoCancellation: true, noiseSuppression: true, autoGainControl: true },
  });
  try {
    await context.audioWorklet.addModule(new URL("vendor/opus-recorder/encoderWorker.min.js", import.meta.url));
    return new Microphone(context, stream);
  } catch (error) {
    for (const track of stream.getTracks()) track.stop();
    throw error;
  }
}

class Microphone {
  constructor(context, stream) {
    this.context = context;
    this.stream = stream;
    this.source = new MediaStreamAudioSourceNode(context, { mediaStream: stream });
    this.analyser = new AnalyserNode(context, { fftSize: 1024 });
    this.source.connect(this.analyser);
    this.encoder = null;
  }

  // Starts the stream: `onPage(bytes, isHeader)` from now on. The tracks' end is `onLost()`.
  start(onPage, onLost) {
    for (const track of this.stream.getTracks()) track.onended = onLost;
    let headers = 2;
    this.encoder = new AudioWorkletNode(this.context, "encoder-worklet", {
      numberOfOutputs: 0, channelCount: 1, channelCountMode: "explicit",
    });
    this.encoder.port.onmessage = ({ data }) => {
      if (data.message === "ready") {
        this.encoder.port.postMessage({ command: "getHeaderPages" });
        this.source.connect(this.encoder);
      } else if (data.page) {
        onPage(data.page, headers > 0);
        headers -= 1;
      }
    };
    this.encoder.port.postMessage({
      command: "init",
      encoderApplication: OPUS_VOIP,
      encoderFrameSize: 20,
      encoderSampleRate: MODEL_RATE_HZ,
      maxFramesPerPage: 2,
      numberOfChannels: 1,
      originalSampleRate: this.context.sampleRate,
      resampleQuality: 3,
    });
  }

  // A connection that follows another begins with headers of its own: start again after this.
  pause() {
    if (!this.encoder) return;
    this.encoder.port.onmessage = null;
    this.encoder.port.postMessage({ command: "close" });
    this.source.disconnect();
    this.source.connect(this.analyser);
    this.encoder = null;
  }

  close() {
    for (const track of this.stream.getTracks()) {
      track.onended = null;
      track.stop();
    }
    this.pause();
    this.source.disconnect();
  }
}
