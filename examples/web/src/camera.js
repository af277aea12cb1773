// The camera: classify one frame after the other, as fast as the model allows, until stopped.
import { classify } from "./classifier.js";
import { percent, taskText } from "./results.js";

const section = document.getElementById("camera");
const video = document.getElementById("video");
const label = document.getElementById("live-label");
const detail = document.getElementById("live-detail");
const sureness = document.getElementById("live-sureness");
const switchButton = document.getElementById("camera-switch");

let stream = null;
let taking = null; // what is done with frames instead of classifying them
let facing = "environment"; // away from the user, where there are two

export async function startCamera(page) {
  stopCamera();
  stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: facing, width: { ideal: 1280 } } });
  video.srcObject = stream;
  section.hidden = false;
  await video.play();
  section.scrollIntoView({ block: "nearest" }); // on a phone it would be below the screen
  const cameras = (await navigator.mediaDevices.enumerateDevices()).filter(({ kind }) => kind === "videoinput");
  switchButton.hidden = cameras.length < 2;
  watch(page, stream);
}

export const isRunning = () => stream !== null;

/** Hand every frame to `take` (an async function) until `release` is called, which returns when the last is done. */
export function record(take) {
  const recording = { take, last: null };
  taking = recording;
  return async () => {
    if (taking === recording) taking = null;
    await recording.last;
  };
}

export function stopCamera() {
  stream?.getTracks().forEach((track) => track.stop());
  stream = null;
  video.srcObject = null;
  section.hidden = true;
}

export function switchCamera(page) {
  facing = facing === "environment" ? "user" : "environment";
  return startCamera(page);
}

/** The frame on screen, as an ImageBitmap. */
export const frame = () => createImageBitmap(video);

async function watch(page, current) {
  while (stream === current) {
    const recording = taking;
    if (recording) await (recording.last = frame().then(recording.take));
    else show(page, await classify(await frame()));
    await new Promise(requestAnimationFrame); // at most one a frame, and none while the page is in the background
  }
}

function show(page, { top, unknown, taskScores, milliseconds }) {
  const [{ label: best, probability }] = top;
  label.textContent = unknown ? "unknown" : `${best} ${percent(probability)}`;
  sureness.style.setProperty("--share", unknown ? 0 : probability);
  const nearest = unknown ? `most like ${best}` : taskText(page, taskScores);
  detail.textContent = [nearest, `${milliseconds.toFixed(0)} ms`].filter(Boolean).join(" · ");
}
