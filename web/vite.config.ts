import { defineConfig } from "vitest/config";

export default defineConfig({
  // The page works under any path, and from a folder of any server.
  base: "./",
  // The policy in index.html allows no inline data. `npm run size` says what is too large.
  build: { target: "es2022", assetsInlineLimit: 0, modulePreload: { polyfill: false }, chunkSizeWarningLimit: 1024 },
  // Machines that test are busy: what is told of a test is what it finds, not how long it took.
  test: { testTimeout: 60_000 },
});
