// Recordings in the browser: decoding, writing WAV, the microphone.

export const RATE = 16000; // as the model hears it
const LONGEST_RECORDING_MS = 60000;

/** Mono samples at 16 kHz of the bytes of any audio file that this browser can read. */
export async function decode(bytes) {
  const buffer = await new OfflineAudioContext(1, 1, RATE).decodeAudioData(bytes);
  const mono = new Float32Array(buffer.length);
  for (let c = 0; c < buffer.numberOfChannels; c++) {
    const channel = buffer.getChannelData(c);
    for (let i = 0; i < mono.length; i++) mono[i] += channel[i] / buffer.numberOfChannels;
  }
  return mono;
}

/** A 16-bit WAV file of mono samples at 16 kHz. */
export function wavBytes(wave) {
  const view = new DataView(new ArrayBuffer(44 + 2 * wave.length));
  const text = (at, s) => [...s].forEach((c, i) => view.setUint8(at + i, c.charCodeAt(0)));
  text(0, "RIFF"); view.setUint32(4, 36 + 2 * wave.length, true); text(8, "WAVEfmt ");
  view.setUint32(16, 16, true); view.setUint16(20, 1, true); view.setUint16(22, 1, true);
  view.setUint32(24, RATE, true); view.setUint32(28, 2 * RATE, true); view.setUint16(32, 2, true); view.setUint16(34, 16, true);
  text(36, "data"); view.setUint32(40, 2 * wave.length, true);
  wave.forEach((v, i) => view.setInt16(44 + 2 * i, Math.max(-1, Math.min(1, v)) * 32767, true));
  return view.buffer;
}

/**
 * Record from the microphone, with the browser's speech filters off: they take away what a stethoscope hears.
 * Returns a function that ends the recording. `onTick` gets the seconds so far, `onDone` the recorded Blob.
 */
export async function record(onTick, onDone) {
  const audio = { echoCancellation: false, noiseSuppression: false, autoGainControl: false };
  const stream = await navigator.mediaDevices.getUserMedia({ audio });
  const recorder = new MediaRecorder(stream), parts = [], began = performance.now();
  const timer = setInterval(() => {
    onTick((performance.now() - began) / 1000);
    if (performance.now() - began > LONGEST_RECORDING_MS) recorder.stop();
  }, 200);
  recorder.ondataavailable = event => parts.push(event.data);
  recorder.onstop = () => {
    clearInterval(timer);
    stream.getTracks().forEach(track => track.stop());
    onDone(new Blob(parts));
  };
  recorder.start();
  return () => recorder.state === "recording" && recorder.stop();
}
