// Service worker: keeps the page and its model, so that it works offline and starts at once.
//
// `cdl export --web` puts one line before this file: const SITE = { version: "…", files: ["…", …] };
// The version is a hash of all files, so another model is another version, fetched whole before it replaces the old one.

// Caches belong to the whole host, and another folder of it may hold another page: the name says whose this one is. No
// path of a URL has a space in it.
const SCOPE = self.registration.scope;
const OWN = `cdl-page ${new URL(SCOPE).pathname} `;
const CACHE = OWN + SITE.version;

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
  event.waitUntil(forgetOldVersions().then(() => self.clients.claim()));
});

async function forgetOldVersions() {
  for (const name of await caches.keys()) {
    const isOurs = name.startsWith(OWN) || (/^cdl-page-[0-9a-f]{16}$/.test(name) && (await holdsThisPage(name)));
    if (isOurs && name !== CACHE) await caches.delete(name);
  }
}

// Up to version 0.1.0 names did not say whose a cache is; its files do.
async function holdsThisPage(name) {
  const cache = await caches.open(name);
  return (await cache.match(new URL("index.html", SCOPE).href)) !== undefined;
}

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
