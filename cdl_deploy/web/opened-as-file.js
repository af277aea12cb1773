// A classic script: browsers run no modules in a page that was opened from the disk, so nobody else could say this.
if (location.protocol === "file:") {
  document.getElementById("status").textContent =
    "Browsers run this page from a web host only, not as a file. In its folder, type python -m http.server, and open localhost:8000.";
  document.getElementById("loading").hidden = true;
}
