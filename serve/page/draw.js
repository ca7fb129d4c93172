// Pictures of a recording: waveform, spectrogram, and the evidence over it.

import { RATE } from "./sound.js";

export const HEARD_SECONDS = 7;
const SIZE = 1024, ROWS = 128, COLUMNS = 800, DECIBELS = 75; // 128 rows are 0 to 2 kHz, where these sounds lie
const STRIP = 36; // of the evidence, at the top, where these sounds are weakest
const FOR = "232, 89, 12", AGAINST = "76, 141, 255", DARK = "10, 20, 22";
const hann = Float32Array.from({ length: SIZE }, (_, i) => 0.5 - 0.5 * Math.cos(2 * Math.PI * i / SIZE));
const cosines = Float32Array.from({ length: SIZE / 2 }, (_, k) => Math.cos(-2 * Math.PI * k / SIZE));
const sines = Float32Array.from({ length: SIZE / 2 }, (_, k) => Math.sin(-2 * Math.PI * k / SIZE));

/** An empty picture; `label` is what a screen reader says of it. */
export function picture(kind, label) {
  const element = Object.assign(document.createElement("canvas"), { className: kind });
  element.setAttribute("role", "img");
  element.setAttribute("aria-label", label);
  return element;
}

/** Something to draw with, in the canvas's own size on the screen. */
function pen(element) {
  const width = element.clientWidth, height = element.clientHeight, sharp = devicePixelRatio;
  element.width = width * sharp; element.height = height * sharp;
  const g = element.getContext("2d");
  g.scale(sharp, sharp);
  g.font = "13px system-ui, sans-serif";
  return { g, width, height };
}

/** The waveform: from the lowest to the highest sample of each column. */
export function drawWave(element, wave) {
  const { g, width, height } = pen(element), step = wave.length / width, middle = height / 2;
  let peak = 1e-6;
  for (const v of wave) peak = Math.max(peak, Math.abs(v));
  g.fillStyle = "#6fd6df";
  for (let x = 0; x < width; x++) {
    let low = 0, high = 0;
    for (let i = Math.floor(x * step); i < (x + 1) * step; i++) { low = Math.min(low, wave[i]); high = Math.max(high, wave[i]); }
    g.fillRect(x, middle * (1 - 0.94 * high / peak), 1, Math.max(1, middle * 0.94 * (high - low) / peak));
  }
}

const images = new WeakMap(); // a recording's spectrogram is computed once

/** The spectrogram, 0 to 2 kHz, with what the model does not hear dimmed, and the evidence where there is some. */
export function drawSpectrogram(element, { wave, evidence, most }) {
  const { g, width, height } = pen(element), seconds = wave.length / RATE, scale = width / seconds;
  if (!images.has(wave)) {
    images.set(wave, new OffscreenCanvas(COLUMNS, ROWS));
    images.get(wave).getContext("2d").putImageData(image(wave), 0, 0);
  }
  g.drawImage(images.get(wave), 0, 0, width, height);
  g.fillStyle = `rgba(${DARK}, 0.75)`;
  if (seconds > HEARD_SECONDS) g.fillRect(HEARD_SECONDS * scale, 0, width, height);
  if (evidence) drawEvidence(g, height, scale, evidence, most);
  g.fillStyle = "#fff";
  g.shadowColor = "#000"; g.shadowBlur = 4;
  g.fillText("2 kHz", 4, evidence ? STRIP + 15 : 15);
  for (let s = 1; s < seconds - 0.3; s += Math.ceil(seconds / 10)) {
    g.fillRect(s * scale, height - 6, 1, 6);
    g.fillText(`${s} s`, s * scale + 3, height - 4);
  }
}

function image(wave) {
  const found = new ImageData(COLUMNS, ROWS), power = new Float32Array(COLUMNS * ROWS);
  const re = new Float32Array(SIZE), im = new Float32Array(SIZE);
  let top = 1e-12;
  for (let x = 0; x < COLUMNS; x++) {
    const start = Math.floor(x * Math.max(0, wave.length - SIZE) / (COLUMNS - 1));
    for (let i = 0; i < SIZE; i++) { re[i] = (wave[start + i] || 0) * hann[i]; im[i] = 0; }
    fft(re, im);
    for (let y = 0; y < ROWS; y++) top = Math.max(top, power[x * ROWS + y] = re[y] ** 2 + im[y] ** 2);
  }
  for (let x = 0; x < COLUMNS; x++) for (let y = 0; y < ROWS; y++) {
    const v = Math.max(0, 1 + 10 * Math.log10(Math.max(power[x * ROWS + y], 1e-12) / top) / DECIBELS);
    const at = 4 * ((ROWS - 1 - y) * COLUMNS + x);
    found.data.set([255 * Math.min(1, Math.max(0, 2.2 * v - 1)), 255 * v ** 1.6, 255 * (0.2 + 0.6 * Math.sin(Math.PI * v)), 255], at);
  }
  return found;
}

function fft(re, im) {
  for (let i = 1, j = 0; i < SIZE; i++) {
    let bit = SIZE >> 1;
    for (; j & bit; bit >>= 1) j ^= bit;
    j ^= bit;
    if (i < j) { [re[i], re[j]] = [re[j], re[i]]; [im[i], im[j]] = [im[j], im[i]]; }
  }
  for (let len = 2; len <= SIZE; len <<= 1) {
    const half = len / 2, stride = SIZE / len;
    for (let i = 0; i < SIZE; i += len) for (let k = 0; k < half; k++) {
      const c = cosines[k * stride], s = sines[k * stride], a = i + k, b = a + half;
      const tr = re[b] * c - im[b] * s, ti = re[b] * s + im[b] * c;
      re[b] = re[a] - tr; im[b] = im[a] - ti; re[a] += tr; im[a] += ti;
    }
  }
}

/** A tint over each second, and a bar for it, up or down; `most` is the strongest of all recordings asked about. */
function drawEvidence(g, height, scale, evidence, most) {
  g.fillStyle = `rgba(${DARK}, 0.85)`;
  g.fillRect(0, 0, HEARD_SECONDS * scale, STRIP);
  for (const { start, end, value } of evidence.seconds) {
    const colour = value >= 0 ? FOR : AGAINST, share = Math.abs(value) / (most || 1);
    const x = start * scale, width = (end - start) * scale, bar = Math.max(1, share * STRIP / 2);
    g.fillStyle = `rgba(${colour}, ${0.3 * share})`;
    g.fillRect(x, STRIP, width, height);
    g.fillStyle = `rgb(${colour})`;
    g.fillRect(x + 1, value >= 0 ? STRIP / 2 - bar : STRIP / 2, Math.max(1, width - 2), bar);
    g.fillStyle = "#fff"; // not by colour alone
    g.fillText(value >= 0 ? "+" : "−", x + 4, value >= 0 ? STRIP / 2 - 3 : STRIP - 5);
  }
  g.fillRect(0, STRIP / 2, evidence.seconds.at(-1).end * scale, 1);
}

/** Where the evidence is strongest, in words. */
export function strongest(evidence) {
  const { start, end } = evidence.seconds.reduce((a, b) => (b.value > a.value ? b : a));
  return `The answer rests most on seconds ${start} to ${end}.`;
}
