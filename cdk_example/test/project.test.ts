/** What is pinned stays pinned, and the README names what exists. */
import assert from "node:assert/strict";
import { existsSync, readFileSync } from "node:fs";
import * as path from "node:path";
import { test } from "node:test";
import { ExampleStack } from "../lib/example-stack";
import { ROOT, newApp } from "./support";

const read = (name: string) => readFileSync(path.join(ROOT, name), "utf8");
const project = JSON.parse(read("package.json"));
const lock = JSON.parse(read("package-lock.json"));
const README = read("README.md");

test("every dependency is pinned, and the lock file holds just these", () => {
  const { dependencies, devDependencies } = project;

  for (const [name, version] of Object.entries({ ...dependencies, ...devDependencies })) {
    assert.match(version as string, /^\d+\.\d+\.\d+$/, name);
    assert.equal(lock.packages[`node_modules/${name}`].version, version, name);
  }
  assert.ok("aws-cdk" in devDependencies);
});

test("the lock file names no registry, so that everybody's own is asked", () => {
  const packages = Object.entries<{ resolved?: string; integrity?: string; inBundle?: boolean }>(lock.packages).slice(
    1,
  );

  assert.deepEqual(
    packages.filter(([, { resolved }]) => resolved !== undefined),
    [],
  );
  assert.deepEqual(
    packages.filter(([, { integrity, inBundle }]) => !integrity && !inBundle).map(([name]) => name),
    [],
  );
});

test("the layer's requirement is pinned by its hashes", () => {
  const requirements = read("layer/requirements.txt");

  assert.match(requirements, /^psycopg2-binary==\d+\.\d+\.\d+ \\$/m);
  assert.equal(requirements.match(/--hash=sha256:[0-9a-f]{64}/g)?.length, 4);
});

test("the README's commands, files and outputs exist", () => {
  const scripts = [...README.matchAll(/npm run ([a-z]+)/g)].map((match) => match[1]!);
  const files = [...README.matchAll(/`((?:bin|lib|layer|test)\/[\w./-]+)`/g)].map((match) => match[1]!);
  const outputs = [...README.matchAll(/`([A-Z]\w+)`/g)].map((match) => match[1]!);
  const stack = new ExampleStack(newApp(), "Example");

  assert.deepEqual(
    scripts.filter((name) => !(name in project.scripts)),
    [],
  );
  assert.deepEqual(
    files.filter((name) => !name.endsWith("wheels") && !existsSync(path.join(ROOT, name))),
    [],
  );
  assert.deepEqual(
    outputs.filter((name) => !stack.node.tryFindChild(name)),
    [],
  );
  assert.ok(scripts.length > 3 && files.length > 3 && outputs.length > 3);
});
