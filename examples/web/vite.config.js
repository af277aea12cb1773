import { createReadStream } from "node:fs";
import { join } from "node:path";
import { defineConfig } from "vite";

// `SITE=folder npm run dev` serves the model of a page that `cdl export --web folder` wrote.
const siteModel = {
  name: "site-model",
  configureServer(server) {
    server.middlewares.use((request, response, next) => {
      const name = request.url.slice(1);
      if (name !== "page.json" && !/^[^/]+\.(onnx|safetensors)$/.test(name)) return next();
      createReadStream(join(process.env.SITE ?? ".", name))
        .on("error", () => next())
        .pipe(response);
    });
  },
};

export default defineConfig({
  base: "./", // the page may lie in any folder of a host
  publicDir: "static",
  plugins: [siteModel],
  worker: { format: "es" },
  resolve: {
    conditions: ["onnxruntime-web-use-extern-wasm"], // threads start from a file of their own, not from our worker
  },
  build: {
    target: "es2022",
    assetsInlineLimit: 0,
    modulePreload: false,
  },
});
