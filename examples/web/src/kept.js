// What was taught, kept by the browser (IndexedDB) over a reload: one record a page, as several may share a host.
const DATABASE = "cdl-page";
const STORE = "taught";

export const readKept = (page) => transaction("readonly", (store) => store.get(page));
export const keep = (page, record) => transaction("readwrite", (store) => store.put(record, page));
export const dropKept = (page) => transaction("readwrite", (store) => store.delete(page));

async function transaction(mode, request) {
  const opening = indexedDB.open(DATABASE, 1);
  opening.onupgradeneeded = () => opening.result.createObjectStore(STORE);
  const database = await finished(opening, "onsuccess");
  try {
    const running = database.transaction(STORE, mode);
    const asked = request(running.objectStore(STORE));
    await finished(running, "oncomplete");
    return asked.result;
  } finally {
    database.close();
  }
}

const finished = (request, event) =>
  new Promise((resolve, reject) => {
    request[event] = () => resolve(request.result);
    request.onerror = request.onabort = () => reject(request.error);
  });
