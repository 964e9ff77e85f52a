/** The layer is put together by pip alone, and is the same each time. Needs a network, or `npm run wheels` before. */
import assert from "node:assert/strict";
import { chmodSync, readFileSync, writeFileSync } from "node:fs";
import * as path from "node:path";
import { test } from "node:test";
import { App, Stack } from "aws-cdk-lib";
import * as lambda from "aws-cdk-lib/aws-lambda";
import { PsycopgLayer, build } from "../lib/psycopg-layer";
import { filesIn, onlyOf, resourcesOf, temporaryFolder } from "./support";

const PINNED = readFileSync(path.join(__dirname, "..", "layer", "requirements.txt"), "utf8").match(/==(\S+)/)![1]!;

for (const [architecture, machine] of [
  [lambda.Architecture.X86_64, "x86_64"],
  [lambda.Architecture.ARM_64, "aarch64"],
] as const) {
  test(`two builds for ${architecture.name} are equal`, () => {
    const [first, second] = [temporaryFolder(), temporaryFolder()];

    build(first, architecture);
    build(second, architecture);

    const files = filesIn(first);
    assert.deepEqual(filesIn(second), files);
    for (const file of files) {
      assert.ok(readFileSync(path.join(first, file)).equals(readFileSync(path.join(second, file))), file);
    }
    assert.ok(files.includes(`python/psycopg2/_psycopg.cpython-313-${machine}-linux-gnu.so`), files.join("\n"));
    assert.ok(files.includes(`python/psycopg2_binary-${PINNED}.dist-info/METADATA`));
    assert.deepEqual(
      files.filter((file) => file.endsWith(".pyc") || !file.startsWith("python/psycopg2")),
      [],
    );
  });
}

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
