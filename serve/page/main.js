// The page: what was added, what is asked, what came back.

import { analyze } from "./client.js";
import { drawSpectrogram, drawWave, HEARD_SECONDS, picture, strongest } from "./draw.js";
import { decode, RATE, record, wavBytes } from "./sound.js";

const $ = id => document.getElementById(id);
const facts = JSON.parse($("facts").textContent);
const sounds = []; // {name, wave, blob, url, quality, evidence, most}
let edited = false, endRecording = null, running = null;

function make(tag, fields = {}, ...children) {
  const element = Object.assign(document.createElement(tag), fields);
  element.append(...children);
  return element;
}
function say(text) { $("status").textContent = text; }
function complain(text) { $("problem").textContent = text; if (text) say(""); }

// --- recordings ---

async function add(name, blob) {
  if (sounds.length >= facts.maxRecordings) return complain(`At most ${facts.maxRecordings} recordings.`);
  const bytes = await blob.arrayBuffer();
  let wave = null;
  try { wave = await decode(bytes.slice(0)); } catch { /* shown below */ }
  const known = /\.(wav|flac|mp3|ogg)$/i.test(name);
  if (!wave && !known) return complain(`${name}: this browser cannot read it.`);
  const sent = known ? new Blob([bytes]) : new Blob([wavBytes(wave)], { type: "audio/wav" });
  sounds.push({ name, wave, blob: sent, url: URL.createObjectURL(sent) });
  complain("");
  say(`Audio ${sounds.length} added: ${name}.`);
  show();
}

function show() {
  $("sounds").replaceChildren(...sounds.map(figure));
  draw();
  $("pair").hidden = sounds.length < 2;
  $("legend").hidden = !sounds.some(sound => sound.evidence);
}

/** Only what is on the page has a size to draw in. */
function draw() {
  sounds.forEach((sound, index) => {
    const [wave, spectrogram] = $("sounds").children[index].querySelectorAll("canvas");
    if (wave) { drawWave(wave, sound.wave); drawSpectrogram(spectrogram, sound); }
  });
}
addEventListener("resize", draw);

function figure(sound, index) {
  const title = `Audio ${index + 1}`, seconds = sound.wave ? sound.wave.length / RATE : 0;
  const heard = seconds > HEARD_SECONDS ? `, the first ${HEARD_SECONDS} s are heard` : "";
  const remove = make("button", { type: "button", className: "small", textContent: "Remove" });
  remove.setAttribute("aria-label", `Remove ${title}`);
  remove.onclick = () => {
    URL.revokeObjectURL(sounds.splice(index, 1)[0].url);
    show();
    say(`${title} removed.`);
    $("files").focus();
  };
  const label = `${title}: ${sound.name}` + (seconds ? ` (${seconds.toFixed(1)} s${heard})` : "");
  const element = make("figure", {}, make("figcaption", {}, make("span", { textContent: label }), remove));
  if (sound.wave) {
    const seen = `Spectrogram of ${title}: ${seconds.toFixed(1)} seconds, 0 to 2 kilohertz.`;
    const label = sound.evidence ? `${seen} ${strongest(sound.evidence)}` : seen;
    element.append(picture("wave", `Waveform of ${title}`), picture("spec", label));
  }
  const player = make("audio", { controls: true, src: sound.url });
  player.setAttribute("aria-label", `Play ${title}`);
  element.append(player);
  if (sound.quality) element.append(qualityLine(sound.quality));
  if (sound.evidence) element.append(evidenceTable(sound.evidence));
  return element;
}

function qualityLine(q) {
  const line = make("p", { className: "facts", textContent: `Level ${q.level_dbfs} dBFS` });
  const share = (value, what) => {
    const warn = value > 0.01 && what === "clipped" || value > 0.5;
    line.append(", ", make("span", { className: warn ? "warn" : "", textContent: `${(100 * value).toFixed(1)} % ${what}` }));
  };
  share(q.clipping_fraction, "clipped");
  share(q.silence_fraction, "silent");
  return line;
}

function evidenceTable(evidence) {
  const rows = evidence.seconds.map(({ start, end, value }) => make("tr", {},
    make("th", { scope: "row", textContent: `${start} to ${end} s` }),
    make("td", { textContent: (value >= 0 ? "+" : "−") + Math.abs(value).toFixed(4) })));
  const head = make("tr", {}, ...["second", evidence.unit].map(text => make("th", { scope: "col", textContent: text })));
  return make("details", {}, make("summary", { textContent: "Evidence, second by second" }),
    make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows)));
}

const addFiles = list => { for (const file of list) add(file.name, file); };
$("files").onchange = event => { addFiles([...event.target.files]); event.target.value = ""; };
for (const kind of ["dragover", "dragleave", "drop"]) $("drop").addEventListener(kind, event => {
  event.preventDefault();
  $("drop").classList.toggle("over", kind === "dragover");
  if (kind === "drop") addFiles(event.dataTransfer.files);
});

for (const [name, title] of Object.entries(facts.examples)) {
  const button = make("button", { type: "button", className: "small", textContent: title });
  button.onclick = async () => {
    const response = await fetch(`page/examples/${name}.flac`);
    if (!response.ok) return complain("The example could not be fetched.");
    $("sound").value = name.split("-")[0];
    await add(`${name}.flac`, await response.blob());
    suggest();
  };
  $("examples").append(button);
}

function showRecording(on) {
  $("record").textContent = on ? "Stop recording" : "Record";
  $("record").setAttribute("aria-pressed", String(on));
  $("recording").textContent = "";
  say(on ? "Recording." : "");
}
$("record").onclick = async () => {
  if (endRecording) return endRecording();
  try {
    endRecording = await record(seconds => { $("recording").textContent = `${seconds.toFixed(1)} s`; }, blob => {
      endRecording = null;
      showRecording(false);
      add("recording", blob);
    });
    showRecording(true);
  } catch { complain("No microphone could be opened."); }
};

$("swap").onclick = () => {
  [sounds[0], sounds[1]] = [sounds[1], sounds[0]];
  for (const sound of sounds) sound.evidence = null;
  show();
  say("Audio 1 and Audio 2 swapped.");
};
$("compare").onclick = () => {
  $("task").value = "Comparison";
  edited = false;
  suggest();
  $("form").requestSubmit();
};

// --- question and answer ---

for (const task of Object.keys(facts.questions)) $("task").add(new Option(task, task));
$("task").value = "Classification";
function suggest() {
  const words = `${$("sound").value} sound`.trim();
  if (!edited) $("question").value = facts.questions[$("task").value].replace("{sound}", words);
}
$("task").onchange = $("sound").onchange = () => { edited = false; suggest(); };
$("question").oninput = () => { edited = $("question").value.trim() !== ""; };
suggest();

function missing() {
  const wanted = facts.wanted[$("task").value];
  if (!$("question").value.trim()) return "Type a question.";
  if (sounds.length < wanted) return wanted > 1 ? "A comparison needs two recordings." : "Add a recording first.";
  return "";
}

async function ask() {
  const asked = [...sounds];
  for (const sound of sounds) sound.evidence = sound.quality = null;
  show();
  const result = await analyze({
    recordings: asked,
    fields: {
      task: $("task").value, question: $("question").value, evidence: String($("evidence").checked),
      ...($("sound").value && { sound: $("sound").value }),
    },
    key: $("key").value, signal: running.signal,
    onText: text => { say("Answering …"); $("answer").textContent += text; },
  });
  $("answer").textContent = result.answer || "(The model gave no answer.)";
  const all = (result.evidence ?? []).flatMap(one => one.seconds.map(second => Math.abs(second.value)));
  asked.forEach((sound, index) => Object.assign(sound, {
    quality: result.audio[index], evidence: result.evidence?.[index] ?? null, most: Math.max(...all),
  }));
  $("source").textContent = `${result.model} · ${result.notice}`;
  show();
}

$("stop").onclick = () => running?.abort();
$("form").onsubmit = async event => {
  event.preventDefault();
  complain(missing());
  if (missing() || running) return;
  running = new AbortController();
  $("ask").disabled = true; $("stop").disabled = false;
  $("answer").textContent = $("source").textContent = "";
  $("answer").setAttribute("aria-busy", "true"); // screen readers wait for the whole
  say("Listening …");
  const began = performance.now();
  try {
    await ask();
    say(`Answered in ${((performance.now() - began) / 1000).toFixed(1)} s.`);
  } catch (error) {
    if (error.name === "AbortError") say("Stopped.");
    else complain(error.message);
    if (error.status === 401) { $("keyrow").hidden = false; $("key").focus(); }
  }
  running = null;
  $("ask").disabled = false; $("stop").disabled = true;
  $("answer").setAttribute("aria-busy", "false");
};
