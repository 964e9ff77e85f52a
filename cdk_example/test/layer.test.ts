/** The layer is put together by pip alone, and is the same each time. Needs a network, or `npm run wheels` before. */
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { chmodSync, cpSync, readFileSync, writeFileSync } from "node:fs";
import * as path from "node:path";
import { test } from "node:test";
import { App, FileSystem, Stack } from "aws-cdk-lib";
import * as lambda from "aws-cdk-lib/aws-lambda";
import { PsycopgLayer, RUNTIME, build } from "../lib/psycopg-layer";
import { ROOT, filesIn, onlyOf, resourcesOf, temporaryFolder } from "./support";

const BY_HAND = readFileSync(path.join(ROOT, "..", "docs", "frameworks", "cdk-by-hand.md"), "utf8");
const PINNED = readFileSync(path.join(ROOT, "layer", "requirements.txt"), "utf8").match(/==(\S+)/)![1]!;

/** Two Pythons, each with the pip that it brings: the oldest and the newest that `make versions` finds. */
function pythonsOf(folder: string): string[] {
  const list = "import versions; print('\\n'.join([*versions.pythons().values()]))";
  const tests = path.join(ROOT, "..", "tests");
  const found = execFileSync(PYTHON, ["-c", list], { cwd: tests, encoding: "utf8" }).trim().split("\n");
  return [found[0]!, found.at(-1)!].map((python, number) => {
    const place = path.join(folder, `python${number}`);
    execFileSync(python, ["-m", "venv", place]);
    return path.join(place, "bin", "python3");
  });
}

const PYTHON = process.env.PYTHON ?? "python3";
const PYTHONS = pythonsOf(temporaryFolder());

for (const runtime of new Set([RUNTIME, lambda.Runtime.PYTHON_3_14])) {
  for (const [architecture, machine] of [
    [lambda.Architecture.X86_64, "x86_64"],
    [lambda.Architecture.ARM_64, "aarch64"],
  ] as const) {
    test(`builds for ${runtime.name} on ${architecture.name} by two Pythons are equal`, () => {
      const builds = PYTHONS.map((python) => {
        const folder = temporaryFolder();
        withPython(python, () => build(folder, architecture, runtime));
        return folder;
      });

      const [first, second] = builds.map((folder) => filesIn(folder)) as [string[], string[]];
      assert.deepEqual(second, first);
      assert.equal(new Set(builds.map((folder) => FileSystem.fingerprint(folder))).size, 1);
      const tag = runtime.name.replace("python", "").replace(".", "");
      assert.ok(first.includes(`python/psycopg2/_psycopg.cpython-${tag}-${machine}-linux-gnu.so`), first.join("\n"));
      assert.ok(first.includes(`python/psycopg2_binary-${PINNED}.dist-info/METADATA`));
      assert.deepEqual(
        first.filter((file) => file.endsWith(".pyc") || !file.startsWith("python/psycopg2")),
        [],
      );
    });
  }
}

test("the documented command makes the same layer, whichever Python runs it", () => {
  const command = BY_HAND.match(/^python3 -m pip install --platform .*?(?=\n```)/ms)![0];
  const expected = temporaryFolder();
  build(expected, lambda.Architecture.X86_64);

  for (const python of PYTHONS) {
    const project = temporaryFolder();
    cpSync(path.join(ROOT, "layer", "requirements.txt"), path.join(project, "layer", "requirements.txt"));
    const environment = { ...process.env, PATH: `${path.dirname(python)}${path.delimiter}${process.env.PATH}` };
    execFileSync("sh", ["-ec", command], { cwd: project, env: environment, stdio: "pipe" });

    assert.equal(FileSystem.fingerprint(path.join(project, "psycopg-layer")), FileSystem.fingerprint(expected));
  }
});

function layerIn(app: App, architecture: lambda.Architecture) {
  const stack = new Stack(app, "Stack");
  new PsycopgLayer(stack, "Layer", { architecture });
  return onlyOf(resourcesOf(stack), "AWS::Lambda::LayerVersion").Properties;
}

test("a synthesis without Docker stages the layer, under a name that says what is in it", () => {
  const apps = [new App({ outdir: temporaryFolder() }), new App({ outdir: temporaryFolder() })] as const;

  const keys = apps.map((app) => layerIn(app, lambda.Architecture.X86_64).Content.S3Key);

  const files = filesIn(path.join(apps[0].outdir, `asset.${keys[0].replace(".zip", "")}`));
  assert.ok(files.includes("python/psycopg2/__init__.py"));
  assert.equal(keys[0], keys[1]);
  assert.notEqual(keys[0], layerIn(new App({ outdir: temporaryFolder() }), lambda.Architecture.ARM_64).Content.S3Key);
});

test("a machine without pip gets an error that says what to do", () => {
  const folder = temporaryFolder();
  const python = path.join(folder, "python");
  writeFileSync(python, "#!/bin/sh\necho 'No module named pip' >&2\nexit 1\n");
  chmodSync(python, 0o755);

  const said = `the psycopg2 layer needs pip, and "${python} -m pip" does not work. Install it, `;
  withPython(python, () => assert.throws(() => build(folder, lambda.Architecture.X86_64), startingWith(said)));
  withPython(python, () => assert.throws(() => build(folder, lambda.Architecture.X86_64), /No module named pip/));
  const missing = path.join(folder, "missing");
  withPython(missing, () =>
    assert.throws(() => build(folder, lambda.Architecture.X86_64), /missing -m pip" does not work/),
  );
});

test("a download that fails says how to do without a network", () => {
  const folder = temporaryFolder();
  const python = path.join(folder, "python");
  writeFileSync(python, "#!/bin/sh\n[ \"$3\" = --version ] && exit 0\necho 'No matching distribution' >&2\nexit 1\n");
  chmodSync(python, 0o755);

  const said =
    'pip could not fetch psycopg2 for the layer. Without a network, run "npm run wheels" once with one.\nNo matching';
  withPython(python, () => assert.throws(() => build(folder, lambda.Architecture.X86_64), startingWith(said)));
});

function startingWith(text: string) {
  return (error: Error) => error.message.startsWith(text) || assert.fail(error.message);
}

function withPython(python: string, act: () => void): void {
  const before = process.env.PYTHON;
  process.env.PYTHON = python;
  try {
    act();
  } finally {
    if (before === undefined) delete process.env.PYTHON;
    else process.env.PYTHON = before;
  }
}
