// Registers the service worker once the model is there, so that its files come from the browser's cache.

const workers = import.meta.env.PROD ? navigator.serviceWorker : undefined;
const visitedBefore = Boolean(workers?.controller);
let place = null;
let isReplaced = false;

// From the start on: a browser looks for a newer version while the model is still loading.
workers?.addEventListener("controllerchange", () => {
  isReplaced = visitedBefore;
  if (place) tell();
});

/** Say in `where` when the page works without the network, and when a newer one has been fetched. */
export async function keepOffline(where) {
  if (!workers) return;
  try {
    await workers.register("./sw.js");
    await workers.ready;
    place = where;
    tell();
  } catch (error) {
    where.textContent = `Needs the network: ${error.message}`;
  }
}

function tell() {
  place.textContent = isReplaced ? "A newer version is here: reload the page to use it" : "Works offline";
}
