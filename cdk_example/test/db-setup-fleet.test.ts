/** What CloudFormation is told of a fleet: rights, retries, order. What its state machine does, tests/fleet shows. */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import * as path from "node:path";
import { test } from "node:test";
import { Stack } from "aws-cdk-lib";
import { DbSetupFleet, DbSetupFleetProps } from "../lib/db-setup-fleet";
import { postgresInstance } from "../lib/example-stack";
import { DB_SETUP, Resource, idOf, newApp, ofType, onlyOf, resourcesOf, vpcOf } from "./support";

function fleetOf(props: Partial<DbSetupFleetProps> = {}) {
  const stack = new Stack(newApp(), "Own");
  const vpc = vpcOf(stack);
  const database = postgresInstance(stack, vpc);
  const fleet = new DbSetupFleet(stack, "Fleet", {
    vpc,
    ...database,
    codePath: DB_SETUP,
    environment: { CREATE_USERS: "false" },
    databases: { like: "tenant_%" },
    ...props,
  });
  const resources = resourcesOf(stack);
  const machine = resources[idOf(fleet.stateMachine)]!;
  const parts: unknown[] = machine.Properties.DefinitionString["Fn::Join"][1];
  const states = JSON.parse(parts.map((part) => (typeof part === "string" ? part : "X")).join("")).States;
  return { fleet, resources, states, machine };
}

/** What a role may do, as "action resource". */
function rights(resources: Record<string, Resource>, role: string): string[] {
  return ofType(resources, "AWS::IAM::Policy")
    .filter(([, { Properties }]) => JSON.stringify(Properties.Roles).includes(`"${role}"`))
    .flatMap(([, { Properties }]) => Properties.PolicyDocument.Statement)
    .flatMap(({ Action, Resource }) => [Action].flat().map((action: string) => `${action} ${JSON.stringify(Resource)}`));
}

test("the state machine may invoke the version, run its map and write results, and nothing else", () => {
  const { fleet, resources } = fleetOf();
  const role = idOf(fleet.stateMachine.role);
  const found = rights(resources, role);
  assert.deepEqual(
    [...new Set(found.map((right) => right.split(" ")[0]!.toLowerCase()))].sort(),
    [
      "lambda:invokefunction",
      ...["s3:abortmultipartupload", "s3:getobject", "s3:listbucket", "s3:listmultipartuploadparts", "s3:putobject"],
      ...["states:describeexecution", "states:describemaprun", "states:listexecutions", "states:redriveexecution"],
      ...["states:startexecution", "states:stopexecution"],
    ],
  );
  assert.ok(found.every((right) => !right.endsWith('"*"')), "a right names no resource");
  const [invoke] = found.filter((right) => right.startsWith("lambda:"));
  assert.equal(invoke, `lambda:InvokeFunction ${JSON.stringify({ Ref: idOf(fleet.function.currentVersion) })}`);
});

test("a migration that failed is not retried; only what can pass is, under the names that db_setup gives it", () => {
  const { states } = fleetOf();
  const { Migrate } = states.Databases.ItemProcessor.States;
  const retried: string[] = Migrate.Retry.flatMap(({ ErrorEquals }: { ErrorEquals: string[] }) => ErrorEquals);
  const ours = retried.filter((name) => /^[A-Z]\w+Error$/.test(name));
  assert.deepEqual(ours, ["StoppedError", "LockError", "ConnectError", "UnreachableError"]);
  const code = ["common.py", "secret_store.py"].map((name) => readFileSync(path.join(DB_SETUP, name), "utf8")).join("");
  for (const name of ours) assert.match(code, new RegExp(`^class ${name}\\(`, "m"));
  assert.ok(!retried.some((name) => ["States.ALL", "States.TaskFailed", "MigrationError", "RefusedError"].includes(name)));
  for (const each of Migrate.Retry) assert.equal(each.JitterStrategy, "FULL");
});

test("a single database has an hour, whatever the function's limit is", () => {
  const runs = (props: Partial<DbSetupFleetProps>) =>
    fleetOf(props).states.Databases.ItemProcessor.States.Migrate.Retry[0].MaxAttempts;
  assert.equal(runs({}), 12);
  assert.equal(runs({ maxRuns: 3 }), 3);
});

test("no failure stops another, and as many are at work as is said", () => {
  const { states } = fleetOf({ maxConcurrency: 5 });
  assert.equal(states.Databases.ToleratedFailurePercentage, 100);
  assert.equal(states.Databases.MaxConcurrency, 5);
  assert.equal(states.Databases.ItemProcessor.ProcessorConfig.Mode, "DISTRIBUTED");
  assert.equal(states.Canaries.MaxConcurrency, 1);
});

test("variables have the database's name in them, and the function the rights on such secrets alone", () => {
  const variables = { ROLE_PREFIX: "{name}_", DB_USER_SECRET_NAME: "tenants/{name}", LOCK_TIMEOUT: "2s" };
  const { fleet, resources, states } = fleetOf({ variables });
  const { Payload } = states.Databases.ItemProcessor.States.Migrate.Parameters;
  assert.deepEqual(Payload.variables, {
    "DB_NAME.$": "$.name",
    "ROLE_PREFIX.$": "States.Format('{}_', $.name)",
    "DB_USER_SECRET_NAME.$": "States.Format('tenants/{}', $.name)",
    LOCK_TIMEOUT: "2s",
  });
  const found = rights(resources, idOf(fleet.function.role!)).filter((right) => right.includes("tenants/"));
  assert.deepEqual(
    found.map((right) => right.split(" ")[0]),
    ["secretsmanager:GetSecretValue", "secretsmanager:PutSecretValue"],
  );
  assert.ok(found.every((right) => right.includes(":secret:tenants/*-??????")));
});

test("new databases are made only from names, and only if that is asked for", () => {
  const payload = (props: Partial<DbSetupFleetProps>) =>
    fleetOf(props).states.Databases.ItemProcessor.States.Migrate.Parameters.Payload;
  assert.equal(payload({}).create, undefined);
  assert.equal(payload({ databases: { names: ["a"] }, createMissing: true }).create, true);
  assert.throws(() => fleetOf({ createMissing: true }), /createMissing needs names/);
});

test("a deployment begins when everything is there, and begins again when code or definition has changed", () => {
  const { fleet, resources } = fleetOf();
  const deployment = onlyOf(resources, "Custom::DbSetupFleet");
  assert.deepEqual(Object.keys(deployment.Properties).sort(), ["Revision", "ServiceToken", "StateMachineArn", "Version"]);
  assert.deepEqual(deployment.Properties.Version, { Ref: idOf(fleet.function.currentVersion) });
  const [[database]] = ofType(resources, "AWS::RDS::DBInstance") as [[string, Resource]];
  const ingress = ofType(resources, "AWS::EC2::SecurityGroupIngress").map(([id]) => id);
  for (const id of [database, ...ingress]) assert.ok(deployment.DependsOn!.includes(id), id);
  assert.equal(ofType(resources, "Custom::Trigger").length, 0);
});

test("what came of each database is private, encrypted, and goes after a while", () => {
  const { Properties } = fleetOf().resources[idOf(fleetOf().fleet.results)]!;
  assert.equal(Properties.PublicAccessBlockConfiguration.BlockPublicAcls, true);
  assert.equal(Properties.LifecycleConfiguration.Rules[0].ExpirationInDays, 90);
});
