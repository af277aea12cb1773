// Teaching: a name, pictures from the camera or from files, and the model knows it. The worker does the work.
import { isRunning, record } from "./camera.js";
import { classes } from "./results.js";
import { collect, decode, discard, isUnreadable, UNREADABLE } from "./classifier.js";
import { forget, learn, open, prepare, reset, save, store, undo } from "./classifier.js";

const element = (id) => document.getElementById(id);
const say = (text) => (element("teach-status").textContent = text);
const name = element("teach-class");
const button = element("teach-record");
const BETWEEN = 100; // milliseconds: frames that follow at once are all but the same picture
let page; // what the page shows of the model; brought up to date here
let onChange;
let startCamera;
let release = null; // ends the recording
let starting = false; // the camera
let working = Promise.resolve(); // one thing after the other

/** Show the section. `known`: what the worker said of the model; `note`: what else it said. */
export function offerTeaching(given) {
  ({ page, onChange, startCamera } = given);
  element("teach").hidden = false;
  update(given.known);
  if (given.note) say(given.note);
  element("teach-files").addEventListener("change", ({ target }) => {
    teachFiles([...target.files]);
    target.value = "";
  });
  name.addEventListener("focus", () => prepare().catch(() => undefined), { once: true }); // learning says what is wrong
  name.addEventListener("keydown", (event) => {
    if (event.key !== "Enter") return;
    event.preventDefault(); // the button would be clicked
    button.focus();
  });
  element("teach-undo").addEventListener("click", () => act(async () => {
    const [last] = page.additions.slice(-1);
    update(await undo());
    say(last.name ? `“${last.name}” is as it was before its last ${pictures(last.images)}` : "Undone; it was forgotten before");
  }));
  element("teach-forget").addEventListener("click", forgetClass);
  element("teach-save").addEventListener("click", () => act(saveFiles));
  element("teach-open").addEventListener("change", ({ target }) => {
    const files = [...target.files];
    target.value = "";
    act(() => openFiles(files));
  });
  element("teach-reset").addEventListener("click", () => act(async () => {
    if (!confirm("Go back to the model of this page? What was taught here is gone then, unless you saved it.")) return;
    update(await reset());
    say("The model is the one of this page again");
  }));
  holdToRecord();
  new MutationObserver(nameButton).observe(element("camera"), { attributeFilter: ["hidden"] });
}

/** Learn from image files (dropped or chosen) as one addition. */
export function teachFiles(files) {
  const images = [...files];
  if (!images.length || !named()) return;
  act(async () => {
    const unread = [];
    let taken = 0;
    for (const [at, file] of images.entries()) {
      say(`Looking at ${at + 1} of ${images.length}`);
      try {
        taken = await collect(await decode(file));
      } catch (error) {
        unread.push(`${file.name}: ${isUnreadable(error) ? UNREADABLE : error.message}`);
      }
    }
    if (!taken) throw new Error(`Nothing was learned. ${unread.join(". ")}`);
    await finish(unread);
  });
}

/** Record while the button is held: by finger, mouse, space bar or Enter. A click that was none, as screen readers make
 * it, begins a recording and ends it. */
function holdToRecord() {
  let held = false;
  const begin = (event) => {
    event.preventDefault?.(); // a long press would select text, the space bar would scroll
    button.focus();
    startRecording();
  };
  const end = () => stopRecording();
  button.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    button.setPointerCapture(event.pointerId);
    held = true; // a click follows
    begin(event);
  });
  for (const type of ["pointerup", "pointercancel", "blur"]) button.addEventListener(type, end);
  button.addEventListener("contextmenu", (event) => event.preventDefault());
  const isKey = ({ key }) => key === " " || key === "Enter";
  button.addEventListener("keydown", (event) => {
    if (isKey(event) && !event.repeat) begin(event);
    else if (isKey(event)) event.preventDefault();
  });
  button.addEventListener("keyup", (event) => {
    if (!isKey(event)) return;
    event.preventDefault();
    end();
  });
  button.addEventListener("click", () => {
    if (held) held = false;
    else if (release) stopRecording();
    else startRecording();
  });
}

async function startRecording() {
  if (release || starting || !named()) return;
  if (!isRunning()) {
    starting = true;
    const started = await startCamera();
    starting = false;
    if (started) {
      button.focus();
      say("Hold the button while you show it from several sides");
    }
    return;
  }
  let taken = 0;
  button.classList.add("recording");
  say("Recording");
  const stop = record(async (bitmap) => {
    const next = new Promise((resolve) => setTimeout(resolve, BETWEEN));
    try {
      taken = await collect(bitmap);
      button.textContent = `Recording: ${pictures(taken)}`; // not in the status, which is read aloud
      await next;
    } catch (error) {
      say(error.message);
    }
  });
  release = async () => {
    for (let wait = 0; !taken && wait < 100; wait++) await new Promise((resolve) => setTimeout(resolve, 50)); // at least one
    await stop();
    return taken;
  };
}

function stopRecording() {
  if (!release) return;
  const stop = release;
  release = null;
  button.classList.remove("recording");
  act(async () => {
    const taken = await stop();
    nameButton();
    if (!taken) throw new Error("The camera gave no picture");
    await finish();
  });
}

async function finish(unread = []) {
  const began = performance.now(); // the last picture has just been looked at
  const before = new Set(page.classes);
  const own = name.value.trim();
  say(`Learning “${own}”…`);
  const said = await learn(own);
  const { duration } = performance.measure("learn", { start: began });
  update(said);
  const isKept = await store(); // after it is known: with many classes taught that takes as long again
  const few = said.images === 1 ? " That is little: show it from other sides, too." : "";
  const seconds = (duration / 1000).toFixed(1);
  const what = before.has(own) ? "Knows it better now" : `Knows ${classes(page.classes.length)} now`;
  const left = unread.length ? ` Left out: ${unread.join(". ")}.` : "";
  say(`Learned “${own}” from ${pictures(said.images)} in ${seconds} s. ${what}.${few}${reloads({ isKept })}${left}`);
}

function forgetClass() {
  if (!named("First say what it is to forget")) return;
  const own = name.value.trim();
  act(async () => {
    if (page.classes.includes(own) && !confirm(`Forget “${own}” for good? Undo will not bring it back.`)) return;
    const said = await forget(own);
    update(said);
    name.value = "";
    say(`“${own}” is forgotten. Knows ${classes(page.classes.length)} now.${reloads(said)}`);
  });
}

async function saveFiles() {
  const files = await save();
  for (const { name: called, blob } of files) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = called;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
  }
  say(`Saved ${files.map((file) => file.name).join(" and ")}: keep the two together`);
}

async function openFiles(files) {
  const [model, statistics] = [".onnx", ".safetensors"].map((end) => files.find((file) => file.name.endsWith(end)));
  if (!model || !statistics) {
    throw new Error("Choose two files together: the model (.onnx) and its statistics (.safetensors)");
  }
  say(`Opening ${model.name}…`);
  update(await open({ model, statistics }));
  say(`${model.name} knows ${classes(page.classes.length)}`);
}

/** Whether there is a name; asks for one. */
function named(question = "First say what it is") {
  if (name.value.trim()) return true;
  say(question);
  name.focus();
  return false;
}

/** Do something after what is being done; an error is told, and nothing was learned. */
function act(what) {
  element("teach").setAttribute("aria-busy", "true");
  working = working.then(what).catch(async (error) => {
    await discard();
    say(error.message);
  });
  const own = working;
  own.then(() => own === working && element("teach").removeAttribute("aria-busy"));
}

function update(known) {
  Object.assign(page, known);
  const rows = page.additions.map((addition) => {
    const row = document.createElement("li");
    row.textContent = addition.name ? `${addition.name}: ${pictures(addition.images)}` : "forgotten since";
    return row;
  });
  element("taught").replaceChildren(...rows.reverse());
  element("teach-known").replaceChildren(...page.classes.map((it) => new Option(it)));
  element("teach-undo").disabled = !page.additions.length;
  element("teach-reset").disabled = !page.isTaught && !page.opened;
  nameButton();
  onChange();
}

const nameButton = () => (button.textContent = isRunning() ? "Hold to record" : "Use the camera");

const reloads = ({ isKept }) => (isKept ? "" : " This browser will not keep it over a reload: save the model.");

const pictures = (count) => (count === 1 ? "one picture" : `${count} pictures`);
