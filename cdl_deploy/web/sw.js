// Service worker: keeps the page and its model, so that it works offline and starts at once.
//
// `cdl export --web` puts one line before this file: const SITE = { version: "…", files: ["…", …] };
// The version is a hash of all files, so another model is another version, fetched whole before it replaces the old one.

const CACHE = `cdl-page-${SITE.version}`;

// With these headers a page may use shared memory, which is what lets WebAssembly use several cores. A static host need
// not send them: from the second visit on they come from here.
const ISOLATION = {
  "Cross-Origin-Opener-Policy": "same-origin",
  "Cross-Origin-Embedder-Policy": "require-corp",
};

self.addEventListener("install", (event) => {
  // no-cache: ask the host whether the copy in the browser's cache is current, and use it if it is.
  const requests = SITE.files.map((name) => new Request(name, { cache: "no-cache" }));
  event.waitUntil(
    caches
      .open(CACHE)
      .then((cache) => cache.addAll(requests))
      .then(() => self.skipWaiting()),
  );
});

self.addEventListener("activate", (event) => {
  const isOld = (name) => name.startsWith("cdl-page-") && name !== CACHE;
  event.waitUntil(
    caches
      .keys()
      .then((names) => Promise.all(names.filter(isOld).map((name) => caches.delete(name))))
      .then(() => self.clients.claim()),
  );
});

self.addEventListener("fetch", (event) => {
  const url = new URL(event.request.url);
  if (event.request.method === "GET" && url.origin === self.location.origin) event.respondWith(answer(event.request));
});

async function answer(request) {
  const name = request.mode === "navigate" ? "index.html" : request;
  const cache = await caches.open(CACHE);
  const found = (await cache.match(name, { ignoreSearch: true })) ?? (await fetch(request));
  if (found.type !== "basic" && found.type !== "default") return found; // a redirect, for the browser to follow
  const headers = new Headers(found.headers);
  for (const [key, value] of Object.entries(ISOLATION)) headers.set(key, value);
  return new Response(found.body, { status: found.status, statusText: found.statusText, headers });
}
