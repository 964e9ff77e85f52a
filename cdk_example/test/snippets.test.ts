/** The snippets that people copied, the one of the first release among them, synthesise as they stand. */
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { cpSync, mkdirSync, readFileSync } from "node:fs";
import * as path from "node:path";
import { before, test } from "node:test";
import { Stack } from "aws-cdk-lib";
import * as ec2 from "aws-cdk-lib/aws-ec2";
import * as iam from "aws-cdk-lib/aws-iam";
import * as lambda from "aws-cdk-lib/aws-lambda";
import * as rds from "aws-cdk-lib/aws-rds";
import * as secretsmanager from "aws-cdk-lib/aws-secretsmanager";
import { FirstRelease } from "./snippets/first-release";
import { Readme } from "./snippets/readme";
import { DB_SETUP, filesIn, idOf, newApp, ofType, onlyOf, resourcesOf, ROOT, temporaryFolder } from "./support";

const README = readFileSync(path.join(ROOT, "..", "README.md"), "utf8");
const shown = [...README.matchAll(/^```typescript\n(.*?)^```$/gms)].map((match) => match[1]!);

function snippetOf(file: string): string {
  const text = readFileSync(path.join(__dirname, "snippets", file), "utf8");
  return text.split("// <<<\n")[1]!.split("// >>>\n")[0]!;
}

before(() => {
  // A project of a user: the snippets name their folders relative to it.
  const project = temporaryFolder();
  cpSync(DB_SETUP, path.join(project, "lambda", "db_setup"), { recursive: true });
  mkdirSync(path.join(project, "layer", "python"), { recursive: true });
  process.chdir(project);
});

function instance(stack: Stack, vpc: ec2.Vpc): rds.DatabaseInstance {
  const engine = rds.DatabaseInstanceEngine.postgres({ version: rds.PostgresEngineVersion.VER_17 });
  return new rds.DatabaseInstance(stack, "Database", {
    engine,
    vpc,
    vpcSubnets: { subnets: [...vpc.isolatedSubnets, ...vpc.privateSubnets] },
  });
}

test("the snippets that are tested here are those that the README shows", () => {
  assert.deepEqual(shown, [snippetOf("readme.ts"), snippetOf("first-release.ts")]);
  // What is out in the field does not change.
  const published = createHash("sha256").update(snippetOf("first-release.ts")).digest("hex");
  assert.equal(published, "f441e389e37bfde3a032a40469c65e55e9a4ce21894df1b045dbfbe7a1be81ff");
});

test("the first release's snippet still makes a function that is triggered", () => {
  const app = newApp();
  const stack = new FirstRelease(app, "shop", (scope, vpc) => ({
    db: {
      dbInstance: instance(scope, vpc),
      secretPathAdminName: "shop-admin",
      secretPathUser: new secretsmanager.Secret(scope, "User"),
      secretPathTableCreator: new secretsmanager.Secret(scope, "TableCreator"),
    },
    psycopgLambdaLayer: new lambda.LayerVersion(scope, "Layer", { code: lambda.Code.fromAsset("layer") }),
    lambdaRole: new iam.Role(scope, "Role", { assumedBy: new iam.ServicePrincipal("lambda.amazonaws.com") }),
  }));

  const resources = resourcesOf(stack);

  const { Properties } = resources[idOf(stack.initializer)]!;
  const { DB_SECRET_NAME, DB_USER_SECRET_NAME, DB_PROXY } = Properties.Environment.Variables;
  assert.deepEqual(
    [Properties.Handler, Properties.Runtime, Properties.Timeout],
    ["initializer.handler", "python3.9", 300],
  );
  assert.equal(Properties.FunctionName, "shop-initializerFunction");
  assert.equal(DB_SECRET_NAME, "shop-admin");
  const names = [stack.db.secretPathUser, stack.db.secretPathTableCreator].map((secret) =>
    stack.resolve(secret.secretName),
  );
  assert.deepEqual([DB_USER_SECRET_NAME, DB_PROXY], names);
  assert.deepEqual(onlyOf(resources, "Custom::Trigger").Properties.HandlerArn, {
    Ref: idOf(stack.initializer.currentVersion),
  });
  const asset = path.join(app.outdir, `asset.${Properties.Code.S3Key.replace(".zip", "")}`);
  assert.ok(filesIn(asset).includes("initializer.py"));
});

test("the README's snippet runs after all that it needs, and may use its secrets and the port", () => {
  const app = newApp();
  const stack = new Readme(app, "Shop", (scope, vpc) => ({
    database: instance(scope, vpc),
    secretsEndpoint: vpc.addInterfaceEndpoint("Secrets", {
      service: ec2.InterfaceVpcEndpointAwsService.SECRETS_MANAGER,
    }),
  }));

  const resources = resourcesOf(stack);

  const setUp = resources[idOf(stack.initializer)]!;
  const after = onlyOf(resources, "Custom::Trigger").DependsOn!;
  const needed = [
    ...ofType(resources, "AWS::RDS::DBInstance"),
    ...ofType(resources, "AWS::EC2::SecurityGroupIngress"),
    ...ofType(resources, "AWS::EC2::VPCEndpoint"),
    ...ofType(resources, "AWS::SecretsManager::Secret"),
    ...ofType(resources, "AWS::SecretsManager::SecretTargetAttachment"),
  ].map(([id]) => id);
  assert.equal(needed.length, 7);
  assert.deepEqual(
    needed.filter((id) => !after.includes(id)),
    [],
  );
  const statements = JSON.stringify(onlyOf(resources, "AWS::IAM::Policy").Properties.PolicyDocument.Statement);
  for (const action of ["secretsmanager:GetSecretValue", "secretsmanager:PutSecretValue"]) {
    assert.ok(statements.includes(action), action);
  }
  assert.deepEqual(Object.keys(setUp.Properties.Environment.Variables), [
    "DB_PROXY",
    "DB_SECRET_NAME",
    "DB_USER_SECRET_NAME",
  ]);
});
