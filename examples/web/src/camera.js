// The camera: classify one frame after the other, as fast as the model allows, until stopped.
import { classify } from "./classifier.js";
import { percent, taskText } from "./results.js";

const section = document.getElementById("camera");
const video = document.getElementById("video");
const label = document.getElementById("live-label");
const detail = document.getElementById("live-detail");
const switchButton = document.getElementById("camera-switch");

let stream = null;
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
    const { top, taskScores, milliseconds } = await classify(await frame());
    label.textContent = `${top[0].label} ${percent(top[0].probability)}`;
    detail.textContent = [taskText(page, taskScores), `${milliseconds.toFixed(0)} ms`].filter(Boolean).join(" · ");
    await new Promise(requestAnimationFrame); // at most one a frame, and none while the page is in the background
  }
}
