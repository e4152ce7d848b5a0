// Writes src/swarm/wire/swarm_pb.ts from swarm/wire/swarm.proto; with --check only says whether it is current.
// The compiler is the one that the Python side uses (grpcio-tools): .venv of the repository, or $PYTHON.
import { execFileSync } from "node:child_process";
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

const web = new URL("..", import.meta.url).pathname;
const target = join(web, "src/swarm/wire/swarm_pb.ts");
const inVenv = join(web, "../.venv/bin/python");
const python = process.env.PYTHON ?? (existsSync(inVenv) ? inVenv : "python3");

const folder = mkdtempSync(join(tmpdir(), "proto-"));
try {
  execFileSync(
    python,
    [
      "-m",
      "grpc_tools.protoc",
      `-I${join(web, "..")}`,
      `--plugin=protoc-gen-es=${join(web, "node_modules/.bin/protoc-gen-es")}`,
      `--es_out=${folder}`,
      "--es_opt=target=ts",
      "swarm/wire/swarm.proto",
    ],
    { stdio: "inherit" },
  );
  const written = readFileSync(join(folder, "swarm/wire/swarm_pb.ts"), "utf8");
  if (!process.argv.includes("--check")) writeFileSync(target, written);
  else if (written !== readFileSync(target, "utf8")) {
    console.error("src/swarm/wire/swarm_pb.ts is not what swarm.proto says: npm run proto");
    process.exitCode = 1;
  }
} finally {
  rmSync(folder, { recursive: true });
}
