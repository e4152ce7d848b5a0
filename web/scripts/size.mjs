// What a visitor downloads, gzipped. Fails above the limit.
import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { gzipSync } from 'node:zlib'

const LIMIT = 250 * 1024
const files = readdirSync('dist', { recursive: true, withFileTypes: true }).filter((entry) => entry.isFile())
let total = 0
for (const file of files) {
  const path = join(file.parentPath ?? file.path, file.name)
  const size = gzipSync(readFileSync(path)).length
  total += size
  console.log(`${String(size).padStart(8)}  ${path}`)
}
console.log(`${String(total).padStart(8)}  of ${LIMIT}`)
process.exit(total > LIMIT ? 1 : 0)
