/** What is uploaded, and what makes a new version of the function: that is what runs the migrations again. */
import assert from "node:assert/strict";
import { mkdirSync, rmSync, utimesSync, writeFileSync } from "node:fs";
import * as path from "node:path";
import { test } from "node:test";
import { Stack } from "aws-cdk-lib";
import * as lambda from "aws-cdk-lib/aws-lambda";
import { DbSetupProps } from "../lib/db-setup";
import { ExampleStack } from "../lib/example-stack";
import {
  DB_SETUP,
  copyOfDbSetup,
  filesIn,
  newApp,
  ofType,
  onlyOf,
  ownStack,
  resourcesOf,
  temporaryFolder,
} from "./support";

/** The function's folder as it is uploaded, and the id of the version that the trigger invokes. */
function deployed(codePath: string, props: (stack: Stack) => Partial<DbSetupProps> = () => ({})) {
  const app = newApp();
  return uploaded(ownStack(app, (stack) => ({ codePath, ...props(stack) })).stack, app.outdir);
}

function uploaded(stack: Stack, outdir: string) {
  const resources = resourcesOf(stack);
  const setUp = ofType(resources, "AWS::Lambda::Function").find(
    ([, each]) => each.Properties.Handler === "initializer.handler",
  )![1];
  const asset = setUp.Properties.Code.S3Key.replace(/\.zip$/, "");
  const version: string = onlyOf(resources, "Custom::Trigger").Properties.HandlerArn.Ref;
  return { files: filesIn(path.join(outdir, `asset.${asset}`)), version };
}

test("the example uploads all modules and migrations of db_setup, and nothing else", () => {
  const app = newApp();
  const expected = filesIn(DB_SETUP).filter(
    (name) =>
      (/^[^/]+\.py$/.test(name) && name !== "__main__.py") || /^(migrations\/[^/]+\.sql|rds_roots\/[^/]+\.pem)$/.test(name),
  );

  const { files } = uploaded(new ExampleStack(app, "Example"), app.outdir);

  assert.deepEqual(files, expected);
  for (const name of ["initializer.py", "database.py", "rds_roots/eu-west-1.pem", "migrations/001_initial_schema.sql"]) {
    assert.ok(files.includes(name), name);
  }
});

test("caches, notes and the terminal's entry stay at home; a certificate bundle goes along", () => {
  const folder = copyOfDbSetup();
  const before = deployed(folder);
  for (const name of ["__pycache__", "migrations/__pycache__", "notes", "tests"]) mkdirSync(path.join(folder, name));
  const unwanted = [
    ...["__main__.py", "__pycache__/a.pyc", "a.pyc", ".DS_Store", "README.md", "notes/a.py", "tests/b.sql", "c.sql"],
    ...["migrations/.DS_Store", "migrations/README.md", "migrations/__pycache__/a.pyc", "migrations/a.py", "other.pem"],
  ];
  for (const name of unwanted) writeFileSync(path.join(folder, name), "x");

  assert.deepEqual(deployed(folder), before);

  // db_setup warns of files in sub-folders, so they have to get there.
  mkdirSync(path.join(folder, "migrations", "later"));
  const wanted = ["global-bundle.pem", "migrations/002_UPPER.SQL", "migrations/later/003_lost.sql", "module.py"];
  for (const name of wanted) writeFileSync(path.join(folder, name), "x");

  assert.deepEqual(deployed(folder).files, [...before.files, ...wanted].sort());
});

test("a changed, new or removed migration makes a new version", () => {
  const folder = copyOfDbSetup();
  const [first, second] = ["001_initial_schema.sql", "002_more.sql"].map((name) =>
    path.join(folder, "migrations", name),
  );
  const versions = [deployed(folder).version];

  writeFileSync(second!, "CREATE TABLE more (id int);\n");
  versions.push(deployed(folder).version);
  writeFileSync(second!, "CREATE TABLE more (id bigint);\n");
  versions.push(deployed(folder).version);
  rmSync(first!);
  versions.push(deployed(folder).version);

  assert.equal(new Set(versions).size, 4);
});

test("another time stamp or place of the folder makes none", () => {
  const folder = copyOfDbSetup();
  const before = deployed(folder).version;

  utimesSync(path.join(folder, "migrations", "001_initial_schema.sql"), 1, 1);
  utimesSync(path.join(folder, "initializer.py"), 1, 1);

  assert.equal(deployed(folder).version, before);
  assert.equal(deployed(copyOfDbSetup()).version, before);
});

test("another variable or layer makes a new version", () => {
  const layer = (text: string) => (stack: Stack) => {
    const folder = temporaryFolder();
    writeFileSync(path.join(folder, "psycopg2.py"), text);
    return { layer: new lambda.LayerVersion(stack, "Layer", { code: lambda.Code.fromAsset(folder) }) };
  };
  const variable = () => ({ environment: { LOCK_TIMEOUT: "2s" } });

  assert.notEqual(deployed(DB_SETUP).version, deployed(DB_SETUP, variable).version);
  assert.notEqual(deployed(DB_SETUP, layer("1")).version, deployed(DB_SETUP, layer("2")).version);
  assert.equal(deployed(DB_SETUP, layer("1")).version, deployed(DB_SETUP, layer("1")).version);
});
