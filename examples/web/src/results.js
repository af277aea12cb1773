// One card a photograph, the newest first.

const list = document.getElementById("results");
const section = document.getElementById("results-section");
const template = document.getElementById("result");
const THUMBNAIL = 560; // longer edge in pixels: photographs themselves are not kept

export const percent = (value) => `${(100 * value).toFixed(1)} %`;

export const classes = (count) => (count === 1 ? "one class" : `${count} classes`);

/** The task with the highest score, from 1, as text; empty for a model whose prompts belong to no task. */
export function taskText(page, scores) {
  if (!page.selects_tasks) return "";
  return `task ${scores.indexOf(Math.max(...scores)) + 1} of ${scores.length}`;
}

/** Put a card for `name` on top, with a small copy of `bitmap`, and return the function that fills in the answer. */
export function addCard(page, name, bitmap) {
  const card = template.content.cloneNode(true).querySelector("li");
  const find = (selector) => card.querySelector(selector);
  find(".name").textContent = name;
  find(".label").textContent = "…";
  find(".picture").append(thumbnail(bitmap, name));
  list.prepend(card);
  section.hidden = false;
  return (answer) => fill(page, card, find, answer);
}

/** A card that says why a file has no answer. */
export function addError(name, message) {
  const card = template.content.cloneNode(true).querySelector("li");
  card.classList.add("failed");
  card.querySelector(".name").textContent = name;
  card.querySelector(".label").textContent = message;
  for (const selector of [".picture", ".top", ".meta"]) card.querySelector(selector).remove();
  list.prepend(card);
  section.hidden = false;
}

export function clearResults() {
  list.replaceChildren();
  section.hidden = true;
}

/** The class that an answer names; "unknown" where nothing that the model knows is near. */
export const labelOf = ({ top, unknown }) => (unknown ? "unknown" : top[0].label);

function fill(page, card, find, answer) {
  const { top, unknown, taskScores, milliseconds, decodeMilliseconds, width, height } = answer;
  card.dataset.label = find(".label").textContent = labelOf(answer);
  find(".probability").textContent = unknown ? "nothing fits" : percent(top[0].probability);
  card.classList.toggle("unknown", unknown);
  find(".top").replaceChildren(...top.map(bar));
  find(".milliseconds").textContent = `${milliseconds.toFixed(milliseconds < 10 ? 1 : 0)} ms`;
  find(".milliseconds").title = `${width} × ${height} pixels; reading them took ${decodeMilliseconds.toFixed(0)} ms more`;
  const task = taskText(page, taskScores);
  if (!task) {
    find(".task").remove();
    find(".scores").remove();
    return;
  }
  const best = Math.max(...taskScores);
  find(".task").textContent = task;
  find(".task").title = `Its prompts were chosen with a score of ${percent(best)}. Classes: ${page.tasks[taskScores.indexOf(best)].join(", ")}`;
  find(".scores").replaceChildren(...taskScores.map((score) => column(score / best)));
}

function bar({ label, probability }) {
  const row = document.createElement("li");
  const name = document.createElement("span");
  const value = document.createElement("span");
  const meter = document.createElement("i");
  name.textContent = label;
  value.textContent = percent(probability);
  meter.style.setProperty("--share", probability);
  row.append(name, meter, value);
  return row;
}

function column(share) {
  const element = document.createElement("i");
  element.style.setProperty("--share", share);
  element.classList.toggle("chosen", share === 1);
  return element;
}

function thumbnail(bitmap, name) {
  const scale = Math.min(1, THUMBNAIL / Math.max(bitmap.width, bitmap.height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", name);
  return canvas;
}
