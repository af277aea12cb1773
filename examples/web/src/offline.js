// Registers the service worker once the model is there, so that its files come from the browser's cache.

/** Say in `place` when the page works without the network, and when a newer one has been fetched. */
export async function keepOffline(place) {
  if (!import.meta.env.PROD || !("serviceWorker" in navigator)) return;
  try {
    const visitedBefore = Boolean(navigator.serviceWorker.controller);
    await navigator.serviceWorker.register("./sw.js");
    await navigator.serviceWorker.ready;
    place.textContent = "Works offline";
    navigator.serviceWorker.addEventListener("controllerchange", () => {
      if (visitedBefore) place.textContent = "A newer version is here: reload the page to use it";
    });
  } catch (error) {
    place.textContent = `Needs the network: ${error.message}`;
  }
}
