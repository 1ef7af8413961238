/* The page of a server: files and recordings are sent to it, a few at once. */
"use strict";

const AT_ONCE = 2, MOST_TRIES = 20;

const config = JSON.parse(byId("config").textContent);
const sounds = new Sounds(config);
const waiting = [];
let sending = 0;

const seconds = (count) => new Promise((resolve) => setTimeout(resolve, 1_000 * count));

function take(files) {
  const added = [...files].map((file) => [file, sounds.add(file.name, URL.createObjectURL(file))]);
  if (added.length) sounds.choose(added[0][1], false);
  waiting.push(...added);
  while (sending < AT_ONCE && waiting.length) work();
}

async function work() {
  sending += 1;
  while (waiting.length) {
    const [file, entry] = waiting.shift();
    sounds.finish(entry, await answer(file));
  }
  sending -= 1;
}

async function answer(file) {
  const failure = (error) => ({ name: file.name, error });
  if (file.size > config.mostBytes) return failure(`This file is too large: at most ${config.mostBytes / 2 ** 20} MiB are accepted.`);
  try {
    await file.slice(0, 1).arrayBuffer();
  } catch {
    return failure("This cannot be read: it is a folder, or was changed, moved or deleted. Choose files.");
  }
  const query = new URLSearchParams({ name: file.name.slice(-1_000), waveform: "true" });
  const type = /^(audio|video)\//.test(file.type) ? file.type : "application/octet-stream";
  try {
    for (let tries = 1; ; tries += 1) {
      const response = await fetch(`score?${query}`, { method: "POST", body: file, headers: { "Content-Type": type } });
      if (response.status === 503 && tries < MOST_TRIES) {
        await seconds(Number(response.headers.get("Retry-After")) || 2);
        continue;
      }
      const told = await response.json();
      return response.ok ? told : failure(told.error);
    }
  } catch {
    return failure("The server does not answer.");
  }
}

byId("limits").textContent = `At most ${config.mostBytes / 2 ** 20} MiB and ${config.mostSeconds >= 120 ? `${config.mostSeconds / 60} min` : `${config.mostSeconds} s`} a file, any format. They are sent to this server only, and not stored.`;
byId("choose").addEventListener("click", () => byId("files").click());
byId("files").addEventListener("change", (event) => {
  take(event.target.files);
  event.target.value = "";
});
for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    byId("drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop") take(event.dataTransfer.files);
  });
}

/* Recording: without what browsers do to a voice, which a detector would hear. */
const UNCHANGED = { echoCancellation: false, noiseSuppression: false, autoGainControl: false };
let recorder = null, asking = false, recordings = 0;

async function record() {
  if (asking) return; // a second recorder would never be stopped
  asking = true;
  byId("trouble").textContent = "";
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ audio: UNCHANGED });
  } catch (error) {
    byId("trouble").textContent = `The microphone cannot be used: ${error.message}.`;
    return;
  } finally {
    asking = false;
  }
  const parts = [], begin = performance.now();
  recorder = new MediaRecorder(stream);
  const show = () => {
    const passed = (performance.now() - begin) / 1_000;
    byId("record").textContent = `Stop (${clock(passed)})`;
    if (passed >= config.mostSeconds - 1) recorder?.stop();
  };
  const timer = setInterval(show, 200);
  recorder.addEventListener("dataavailable", (event) => parts.push(event.data));
  recorder.addEventListener("stop", () => {
    clearInterval(timer);
    for (const track of stream.getTracks()) track.stop();
    const type = recorder.mimeType.split(";")[0];
    recorder = null;
    recordings += 1;
    byId("record").textContent = "Record";
    byId("record").classList.remove("on");
    take([new File(parts, `recording ${recordings}.${type.split("/")[1] || "webm"}`, { type })]);
  }, { once: true });
  recorder.start();
  byId("record").classList.add("on");
  show();
}

if (navigator.mediaDevices && window.MediaRecorder) {
  byId("record").addEventListener("click", () => (recorder ? recorder.stop() : record()));
} else {
  byId("record").hidden = true; // browsers give the microphone to https and localhost alone
}
