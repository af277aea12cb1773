// The page: photographs come in by file dialog, drop, paste or camera, and are classified one after the other.
import { frame, startCamera, stopCamera, switchCamera } from "./camera.js";
import { classify, decode, isUnreadable, loadModel, UNREADABLE } from "./classifier.js";
import { addCard, addError, classes, clearResults, labelOf, percent, taskText } from "./results.js";
import { keepOffline } from "./offline.js";
import { offerTeaching, teachFiles } from "./teach.js";

const element = (id) => document.getElementById(id);
const say = (text) => (element("status").textContent = text);
const drop = element("drop");
let page; // page.json: what the model knows
let queue = Promise.resolve();

start().catch((error) => {
  element("loading").hidden = true;
  drop.classList.add("failed");
  say(`The model could not be loaded: ${error.message}`);
});

async function start() {
  const response = await fetch("./page.json");
  if (!response.ok) throw new Error("no page.json beside the page; write it with cdl export --web");
  page = await response.json();
  describe();
  const absolute = (name) => name && new URL(name, document.baseURI).href; // the worker lies in another folder
  const site = { page: absolute("./"), url: absolute(page.model), bytes: page.bytes, statistics: absolute(page.statistics) };
  const { threads, note, ...known } = await loadModel(site, (share) => (element("loading").value = share));
  element("loading").hidden = true;
  element("files").disabled = element("camera-start").disabled = false;
  element("threads").textContent = threads === 1 ? "· one thread" : `· ${threads} threads`;
  if (page.statistics) offerTeaching({ page, known, note, startCamera: () => camera(startCamera), onChange: describe });
  say("Ready");
  document.body.dataset.ready = "";
  listen();
  keepOffline(element("offline"));
}

function describe() {
  const names = page.classes.length > 8 ? [...page.classes.slice(0, 7), "…"] : page.classes;
  const learned = page.tasks.filter((names) => names.length).length; // of others all classes are forgotten
  const tasks = learned > 1 ? `, learned in ${learned} tasks` : "";
  element("about").textContent =
    `Knows ${classes(page.classes.length)}${tasks}: ${names.join(", ")}. Photographs never leave this device.`;
  element("model").textContent = page.opened
    ? `${page.opened}, opened here`
    : `${page.model}, ${(page.bytes / 1e6).toFixed(1)} MB, from ${page.producer}`;
}

function listen() {
  element("files").addEventListener("change", ({ target }) => {
    add(target.files);
    target.value = ""; // so that the same file can be chosen again
  });
  addEventListener("paste", ({ clipboardData }) => add(clipboardData.files));
  for (const type of ["dragenter", "dragover"]) addEventListener(type, (event) => highlight(event, true));
  for (const type of ["dragleave", "drop"]) addEventListener(type, (event) => highlight(event, false));
  addEventListener("drop", ({ dataTransfer, target }) => {
    if (target.closest?.("#teach")) teachFiles(dataTransfer.files);
    else add(dataTransfer.files);
  });

  element("camera-start").addEventListener("click", () => camera(startCamera));
  element("camera-switch").addEventListener("click", () => camera(switchCamera));
  element("camera-stop").addEventListener("click", () => {
    stopCamera();
    element("camera-start").focus();
  });
  element("camera-keep").addEventListener("click", async () => {
    const time = new Date().toLocaleTimeString();
    enqueue(`Camera, ${time}`, frame());
  });
  element("clear").addEventListener("click", () => {
    clearResults();
    element("files").focus();
  });
}

function highlight(event, on) {
  event.preventDefault(); // a browser would open the photograph instead of the page
  const isTeaching = Boolean(event.target.closest?.("#teach"));
  const hasFiles = on && event.dataTransfer.types.includes("Files");
  drop.classList.toggle("over", hasFiles && !isTeaching);
  element("teach").classList.toggle("over", hasFiles && isTeaching);
}

function add(files) {
  for (const file of files) enqueue(file.name, file);
}

/** One at a time: a thousand dropped photographs must not be decoded at once. */
function enqueue(name, source) {
  queue = queue.then(async () => {
    try {
      const bitmap = await (source instanceof Blob ? decode(source) : source);
      const show = addCard(page, name, bitmap);
      const answer = await classify(bitmap);
      show(answer);
      const { label, probability } = answer.top[0];
      const sure = answer.unknown ? `most like ${label}` : percent(probability);
      say([`${name}: ${labelOf(answer)}, ${sure}`, taskText(page, answer.taskScores)].filter(Boolean).join(", "));
    } catch (error) {
      const message = isUnreadable(error) ? UNREADABLE : error.message;
      addError(name, message);
      say(`${name}: ${message}`);
    }
  });
}

async function camera(begin) {
  try {
    if (!navigator.mediaDevices) throw new Error("browsers give it to pages from https:// or localhost only");
    await begin(page);
    element("camera-keep").focus();
    return true;
  } catch (error) {
    stopCamera();
    say(`No camera: ${error.message}`);
    return false;
  }
}
