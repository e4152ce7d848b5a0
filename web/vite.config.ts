import { defineConfig } from 'vite'

// Relative URLs: the page works from any path of any static host.
export default defineConfig({
  base: './',
  build: { target: 'es2022', outDir: 'dist', emptyOutDir: true, modulePreload: { polyfill: false } },
})
