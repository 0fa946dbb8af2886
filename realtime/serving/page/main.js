/** The page: the camera, pictures and videos, and the controls. */

import {Camera, remedy} from "./camera.js";
import {Connection} from "./connection.js";
import {colors, drawFaces, fitted, mainFace, nameOf} from "./drawing.js";
import {Timeline} from "./timeline.js";
import {VideoFile} from "./video.js";

const HISTORY = 30; // seconds of the camera's timeline
const LARGEST_SIDE = 2048; // pixels: of a picture that is sent
const QUALITY = 0.92; // of a picture that is sent, 0-1
const SPOKEN_EVERY = 2000, FIGURES_EVERY = 500; // milliseconds

const $ = id => document.getElementById(id);
const stage = $("stage");
const connection = new Connection(new URL("watch", location.href).href.replace(/^http/, "ws"));
const camera = new Camera($("video"));

let server = null; // what the server said first: labels, model, anonymous
let mode = "none"; // none, camera, picture or video
let newest = null; // time of the newest camera frame that was not sent
let sending = null; // the promise of the frame in flight
let frozen = false;
let shown = null; // the result that is drawn
let sent = null; // the camera frame that it belongs to, a JPEG
let timeline = new Timeline($("timeline"), HISTORY);
let video = null; // the opened VideoFile
let spoken = {text: "", at: 0};
const trips = []; // {at, trip, server}: milliseconds, of the last second

// ---------------------------------------------------------------- results

function show(result, source) {
  const canvas = $("frame");
  if (source) {
    Object.assign(canvas, {width: source.width, height: source.height});
    canvas.getContext("2d").drawImage(source, 0, 0);
  }
  stage.style.setProperty("--ratio", result.size[0] / result.size[1]);
  shown = result;
  drawFaces(fitted($("overlay")), result, server.labels);
  speak(result);
}

function speak(result) {
  const face = mainFace(result.faces), now = performance.now();
  const count = result.faces.length > 1 ? ` (${result.faces.length} faces)` : "";
  const text = face ? `Face ${face.id || ""}: ${face.label}`.replace(" :", ":") + count : "No face.";
  if (text === spoken.text || (now - spoken.at < SPOKEN_EVERY && mode === "camera")) return;
  spoken = {text, at: now};
  $("spoken").textContent = text;
}

function setMode(next) {
  if (next !== "camera" && isLogging()) toggleLog();
  mode = next;
  const isVideo = mode === "video";
  video?.stop();
  if (mode !== "camera") camera.stop();
  $("camera").textContent = mode === "camera" ? "Stop camera" : "Start camera";
  $("camera").classList.toggle("main", mode !== "camera");
  setFrozen(false);
  $("freeze").disabled = mode !== "camera";
  $("log").disabled = mode !== "camera" || !connection.isOpen;
  $("snapshot").disabled = mode === "none";
  $("seek").hidden = !isVideo;
  $("history").hidden = mode === "picture";
  stage.dataset.mode = mode === "none" ? "empty" : mode === "camera" && !server?.anonymous ? "live" : "still";
  if (mode === "none") [shown, spoken.text, $("spoken").textContent] = [null, "", "No face yet."];
  timeline = new Timeline($("timeline"), isVideo ? Infinity : HISTORY);
  timeline.draw();
}

function complain(text) {
  $("problem").textContent = text;
  $("problem").hidden = !text;
}

// ---------------------------------------------------------------- camera

async function startCamera() {
  complain("");
  try {
    $("camera").disabled = true;
    video?.stop();
    if (video) await connection.command({type: "discard"}).catch(() => {});
    await camera.start($("cameras").value, now => { newest = now; pump(); }, () => {
      setMode("none");
      complain("The camera was unplugged. Plug it in and start it again.");
    });
    if (camera.isOn) setMode("camera");
  } catch (error) {
    camera.stop();
    setMode("none");
    complain(error.isRemedy ? error.message : remedy(error));
  }
  $("camera").disabled = false;
  camera.list($("cameras"));
}

/** Send the newest frame, if none is in flight. */
function pump() {
  if (sending || newest === null || frozen || mode !== "camera" || !connection.isOpen) return;
  const captured = newest;
  newest = null;
  sending = sendFrame(captured).catch(() => {}).finally(() => { sending = null; pump(); });
}

async function sendFrame(captured) {
  const blob = await camera.jpeg();
  if (!blob) return;
  const reply = await connection.picture(blob, captured / 1000);
  sent = blob;
  if (mode !== "camera") return;
  const logEnded = !reply.log && isLogging();  // before the wait below, in which a log may start
  if (server.anonymous) {
    if (reply.blob) show(reply, await createImageBitmap(reply.blob));
  } else {
    show(reply, null);
  }
  if (logEnded) endLog("The log has reached its largest size.");
  timeline.add(reply);
  const now = performance.now();
  trips.push({at: now, trip: now - captured, server: 1000 * reply.server});
  document.dispatchEvent(new CustomEvent("recognized", {detail: {...reply, trip: now - captured, blob: null}}));
}

/** Return a canvas with a camera frame, mirrored as in a mirror. */
async function mirrored(blob) {
  const frame = await createImageBitmap(blob), canvas = new OffscreenCanvas(frame.width, frame.height);
  const context = canvas.getContext("2d");
  context.setTransform(-1, 0, 0, 1, frame.width, 0);
  context.drawImage(frame, 0, 0);
  return canvas;
}

async function setFrozen(value) {
  frozen = value;
  $("freeze").setAttribute("aria-pressed", String(value));
  if (mode !== "camera" || server?.anonymous) return;
  if (frozen) {
    await sending;
    if (frozen && shown) show(shown, await mirrored(sent));
  }
  stage.dataset.mode = frozen ? "still" : "live";
}

async function snapshot() {
  await sending;
  if (!shown) return;
  const source = mode === "camera" && !server.anonymous ? await mirrored(sent) : $("frame");
  const faces = document.createElement("canvas"), picture = document.createElement("canvas");
  for (const canvas of [faces, picture]) Object.assign(canvas, {width: source.width, height: source.height});
  drawFaces(faces.getContext("2d"), shown, server.labels);
  picture.getContext("2d").drawImage(source, 0, 0);
  picture.getContext("2d").drawImage(faces, 0, 0);
  picture.toBlob(blob => {
    const link = Object.assign(document.createElement("a"), {href: URL.createObjectURL(blob), download: "expressions.png"});
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }, "image/png");
}

// ---------------------------------------------------------------- pictures and videos

function open(file) {
  if (!file) return;
  complain("");
  if (!connection.isOpen) return complain("There is no connection to the server; wait until it is back.");
  if (file.type.startsWith("image/")) openPicture(file); else openVideo(file);
}

async function openPicture(file) {
  let picture;
  try {
    picture = await createImageBitmap(file);
  } catch {
    return complain(`${file.name} is no picture that this browser can read; accepted are JPEG, PNG, WebP, GIF and BMP.`);
  }
  setMode("picture");
  const scale = Math.min(1, LARGEST_SIDE / Math.max(picture.width, picture.height));
  const width = Math.max(1, Math.round(scale * picture.width)), height = Math.max(1, Math.round(scale * picture.height));
  const canvas = new OffscreenCanvas(width, height), context = canvas.getContext("2d");
  context.fillStyle = "#fff"; // behind transparent pixels
  context.fillRect(0, 0, width, height);
  context.drawImage(picture, 0, 0, width, height);
  const blob = await canvas.convertToBlob({type: "image/jpeg", quality: QUALITY});
  try {
    const reply = await connection.picture(blob, 0, true);
    if (mode === "picture") show(reply, reply.blob ? await createImageBitmap(reply.blob) : canvas);
  } catch (error) {
    setMode("none");
    complain(`${file.name}: ${error.message}`);
  }
}

async function openVideo(file) {
  if (isLogging()) {
    if (await toggleLog()) complain("The camera's log is finished. Download it, then open the video again. The video's log replaces it.");
    return;
  }
  setMode("video");
  stage.dataset.mode = "empty";
  $("downloads").hidden = true;
  const mine = video = new VideoFile(connection, {
    hint: text => { $("hint").textContent = text; },
    add: result => timeline.add(result),
    show: (result, picture) => { stage.dataset.mode = "still"; show(result, picture); },
    moved: drawSeek,
    ended: warning => { offerTables(); complain(warning); },
  });
  try {
    await mine.analyze(file);
  } catch (error) {
    if (video === mine && mode === "video") { setMode("none"); complain(error.message); }
  }
  $("hint").textContent = "Start the camera, or drop a picture or a video here.";
}

function drawSeek() {
  const {place, results, isPlaying} = video, now = results[place]?.time ?? 0;
  Object.assign($("place"), {max: Math.max(0, results.length - 1), value: place});
  $("place").setAttribute("aria-valuetext", `frame ${place + 1} of ${results.length}, ${now.toFixed(2)} seconds`);
  $("clock").textContent = `${place + 1} / ${results.length}   ${now.toFixed(2)} s`;
  $("play").disabled = results.length < 2;
  $("play").textContent = isPlaying ? "Pause" : "Play";
  timeline.draw(now, video.length);
}

// ---------------------------------------------------------------- log

const isLogging = () => $("log").getAttribute("aria-pressed") === "true";

/** Start or finish the camera's log, and return whether that succeeded. */
async function toggleLog() {
  try {
    if (isLogging()) {
      endLog();
      await connection.command({type: "log", on: false});
      offerTables();
    } else {
      $("downloads").hidden = true;
      await connection.command({type: "log", on: true});
      $("log").setAttribute("aria-pressed", "true");
    }
    return true;
  } catch (error) {
    complain(`The log: ${error.message}.`);
    return false;
  }
}

function endLog(reason = "") {
  $("log").setAttribute("aria-pressed", "false");
  if (reason) { complain(reason); offerTables(); }
}

function offerTables() {
  for (const link of document.querySelectorAll("[data-table]")) link.href = `table/${connection.visitor}/${link.dataset.table}`;
  $("downloads").hidden = false;
}

// ---------------------------------------------------------------- connection

connection.addEventListener("ready", event => {
  server = event.detail;
  Object.assign(colors, server.colors);
  $("connection").textContent = "connected";
  $("model").textContent = server.model;
  $("anonymous").hidden = !server.anonymous;
  if (mode !== "camera") return;
  $("log").disabled = false;
  timeline = new Timeline($("timeline"), HISTORY); // the times of a new visitor start again
});

connection.addEventListener("lost", event => {
  const reason = event.detail ? ` (${event.detail})` : "";
  $("connection").textContent = `no connection${reason}; trying again…`;
  $("log").disabled = true;
  $("downloads").hidden = true;
  if (isLogging()) { endLog(); complain(`The connection was lost${reason}, and the log with it. Keep a new log.`); }
  if (mode === "camera" && !frozen) {
    shown = null;
    $("overlay").width += 0; // clears it
    spoken.text = $("spoken").textContent = "No face yet.";
  }
  if (mode === "video") { setMode("none"); complain(`The connection was lost${reason}. Open the video again.`); }
});

setInterval(() => {
  const now = performance.now();
  while (trips.length && now - trips[0].at >= 1000) trips.shift();
  const median = key => trips.map(each => each[key]).sort((one, other) => one - other)[trips.length >> 1];
  $("rate").textContent = trips.length || "–";
  $("trip").textContent = trips.length ? `${median("trip").toFixed(0)} ms` : "–";
  $("cost").textContent = trips.length ? `${median("server").toFixed(1)} ms` : "–";
  if (mode === "camera") timeline.draw();
}, FIGURES_EVERY);

// ---------------------------------------------------------------- controls

$("camera").onclick = () => mode === "camera" ? setMode("none") : startCamera();
$("cameras").onchange = () => mode === "camera" && startCamera();
$("freeze").onclick = () => { setFrozen(!frozen); };
$("snapshot").onclick = snapshot;
$("log").onclick = toggleLog;
$("file").onchange = event => { open(event.target.files[0]); event.target.value = ""; };
$("place").oninput = event => video?.seek(Number(event.target.value));
$("play").onclick = () => video?.toggle();
$("timeline").onclick = event => mode === "video" && video.seekTime(timeline.timeAt(event, video.length));

for (const name of ["dragenter", "dragover"]) {
  document.addEventListener(name, event => { event.preventDefault(); stage.classList.add("dropping"); });
}
for (const name of ["dragleave", "drop"]) {
  document.addEventListener(name, event => { event.preventDefault(); stage.classList.remove("dropping"); });
}
document.addEventListener("drop", event => {
  if (event.dataTransfer.files.length > 1) complain("One file at a time: the first one is shown.");
  open(event.dataTransfer.files[0]);
});

const KEYS = {c: "camera", f: "freeze", s: "snapshot", l: "log", k: "play"};
document.addEventListener("keydown", event => {
  const control = event.target.closest?.("select, input, a, summary")?.tagName;
  if (event.ctrlKey || event.altKey || event.metaKey || event.repeat && KEYS[event.key] || control === "SELECT") return;
  const step = {ArrowLeft: -1, ArrowRight: 1}[event.key];
  if (step && mode === "video" && control !== "INPUT") video.seek(video.place + step);
  else if (KEYS[event.key.toLowerCase()]) $(KEYS[event.key.toLowerCase()]).click();
  else return;
  event.preventDefault();
});

new ResizeObserver(() => shown && drawFaces(fitted($("overlay")), shown, server.labels)).observe(stage);
navigator.mediaDevices?.addEventListener?.("devicechange", () => camera.list($("cameras")));
camera.list($("cameras"));
