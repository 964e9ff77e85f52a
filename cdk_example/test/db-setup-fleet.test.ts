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

test("the state machine may invoke the function's versions, run its map and write results, and nothing else", () => {
  const { fleet, resources } = fleetOf();
  const [handler, machine, results] = [fleet.function, fleet.stateMachine, fleet.results].map(idOf) as [string, string, string];
  const role = idOf(fleet.stateMachine.role);
  const shortened = (right: string) =>
    right
      .replace(`{"Ref":"${idOf(fleet.function.currentVersion)}"}`, "its version")
      .replace(`{"Fn::Join":["",[{"Fn::GetAtt":["${handler}","Arn"]},":*"]]}`, "any version")
      .replace(`{"Fn::Join":["",[{"Fn::GetAtt":["${results}","Arn"]},"/failures/*"]]}`, "failures/*")
      .replace(/\{"Fn::Join":.*:s3:::",\{"Ref":"FleetResults\w+"\},"\/\*"\]\]\}/, "results/*")
      .replace(`{"Fn::GetAtt":["${results}","Arn"]}`, "results")
      .replace(`{"Ref":"${machine}"}`, "itself")
      .replace(/\{"Fn::Join":.*:(stateMachine|mapRun):Own-Fleet-\w+(\/\*)?"\]\]\}/, "its $1$2")
      .replace(/\{"Fn::Join":.*:execution:",\{"Fn::Select":\[6,.*"(.*)"\]\]\}/, "its execution$1");
  assert.deepEqual(rights(resources, role).map(shortened).sort(), [
    "lambda:InvokeFunction [any version,its version]",
    ...["s3:AbortMultipartUpload", "s3:GetObject"].map((action) => `${action} results/*`),
    "s3:ListBucket results",
    ...["s3:ListMultipartUploadParts", "s3:PutObject"].map((action) => `${action} results/*`),
    ...["s3:getObject", "s3:putObject"].map((action) => `${action} failures/*`),
    ...["states:DescribeExecution its execution:*", "states:DescribeMapRun its mapRun/*"],
    ...["states:ListExecutions its stateMachine", "states:RedriveExecution its execution/*:*"],
    ...["states:StartExecution itself", "states:StopExecution its execution:*"],
  ]);
});

test("the deployment's functions may start and look at an execution, and nothing else", () => {
  const { resources } = fleetOf();
  const rightsOf = (handler: string) => {
    const found = ofType(resources, "AWS::Lambda::Function").filter(([, each]) => each.Properties.Handler === handler);
    assert.equal(found.length, 1);
    return rights(resources, found[0]![1].Properties.Role["Fn::GetAtt"][0]).map((right) => right.split(" ")[0]);
  };
  assert.deepEqual(rightsOf("index.start"), ["states:StartExecution"]);
  assert.deepEqual(rightsOf("index.look"), ["states:StartExecution", "states:DescribeExecution"]);
});

test("a migration that failed is not retried; only what can pass is, under the names that db_setup gives it", () => {
  const { states } = fleetOf();
  const { Migrate } = states.All.ItemProcessor.States;
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
    fleetOf(props).states.All.ItemProcessor.States.Migrate.Retry[0].MaxAttempts;
  assert.equal(runs({}), 12);
  assert.equal(runs({ maxRuns: 3 }), 3);
});

test("no failure stops another, and as many are at work as is said", () => {
  const { states } = fleetOf({ maxConcurrency: 5 });
  assert.equal(states.All.ToleratedFailurePercentage, 100);
  assert.equal(states.All.MaxConcurrency, 5);
  assert.equal(states.All.ItemProcessor.ProcessorConfig.Mode, "DISTRIBUTED");
  assert.equal(states.Canaries.MaxConcurrency, 1);
});

test("variables have the database's name in them, and the function the rights on such secrets alone", () => {
  const variables = { ROLE_PREFIX: "{name}_", DB_USER_SECRET_NAME: "tenants/{name}", LOCK_TIMEOUT: "2s" };
  const { fleet, resources, states } = fleetOf({ variables });
  const { Payload } = states.All.ItemProcessor.States.Migrate.Parameters;
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

test("logins of tenants that sign in by IAM can be tried, whatever precedes their names", () => {
  const environment = { CREATE_USERS: "true", ROLE_PREFIX: "shop_" };
  const named = (variables: DbSetupFleetProps["variables"]) => {
    const { fleet, resources } = fleetOf({ usersByIam: true, environment, variables });
    const found = rights(resources, idOf(fleet.function.role!)).filter((right) => right.startsWith("rds-db:connect"));
    return [...found.join().matchAll(/\/([^"/]+)"/g)].map((match) => match[1]);
  };
  const logins = ["app_rw", "app_rw_clone", "app_tc", "app_tc_clone"];
  assert.deepEqual(named({ ROLE_PREFIX: "{name}_" }), logins.map((login) => `*_${login}`));
  assert.deepEqual(named({}), logins.map((login) => `shop_${login}`));
});

test("names that are too many for a state are refused", () => {
  const names = (count: number) => Array.from({ length: count }, (_, number) => `tenant_${number}`);
  fleetOf({ databases: { names: names(5000) } });
  assert.throws(() => fleetOf({ databases: { names: names(20_000) } }), /write them into a file in S3/);
});

test("schemas are named by DB_SCHEMA, in the database that the function has", () => {
  const { states } = fleetOf({ databases: undefined, schemas: { like: "tenant_%" }, variables: { ROLE_PREFIX: "{name}_" } });
  assert.equal(states.List.Parameters.Payload.schemas, true);
  const { Payload } = states.All.ItemProcessor.States.Migrate.Parameters;
  const variables = { "DB_SCHEMA.$": "$.name", "ROLE_PREFIX.$": "States.Format('{}_', $.name)" };
  assert.deepEqual(Payload, { action: "migrate", variables });
  assert.match(states["Some failed"].CausePath, /schemas failed/);
  assert.equal(fleetOf().states.List.Parameters.Payload.schemas, false);
  assert.throws(() => fleetOf({ schemas: { like: "x" } }), /Fleet: databases or schemas: give one of them/);
  assert.throws(() => fleetOf({ databases: undefined }), /Fleet: databases or schemas: give one of them/);
});

test("an execution that has the definition before the deployment does nothing", () => {
  const { fleet, states, machine } = fleetOf();
  const deployment = onlyOf(fleetOf().resources, "Custom::DbSetupFleet");
  assert.deepEqual(deployment.Properties.Version, { Ref: idOf(fleet.function.currentVersion) });
  const text = machine.Properties.DefinitionString["Fn::Join"][1].map((part: unknown) => JSON.stringify(part)).join("");
  assert.match(text, /^"\{\\"StartAt\\":\\"Is this what was deployed\\"/);
  const { And } = states["Is this what was deployed"].Choices[0];
  assert.deepEqual(And, [
    { Variable: "$.version", IsPresent: true },
    { Not: { Variable: "$.version", StringEquals: "X" } },
  ]);
  assert.equal(states.Outdated.Type, "Fail");
});

test("new databases are made only from names, and only if that is asked for", () => {
  const payload = (props: Partial<DbSetupFleetProps>) =>
    fleetOf(props).states.All.ItemProcessor.States.Migrate.Parameters.Payload;
  assert.equal(payload({}).create, undefined);
  assert.equal(payload({ databases: { names: ["a"] }, createMissing: true }).create, true);
  const refused = /Fleet: createMissing is for databases with names: /;
  assert.throws(() => fleetOf({ createMissing: true }), refused);
  assert.throws(() => fleetOf({ databases: undefined, schemas: { names: ["a"] }, createMissing: true }), refused);
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
