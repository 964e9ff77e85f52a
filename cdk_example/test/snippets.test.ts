/** The snippets that people copy, the one of the first release among them, synthesise as they are, wherever the database is. */
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { cpSync, mkdirSync, readFileSync } from "node:fs";
import * as path from "node:path";
import { before, describe, test } from "node:test";
import { Stack } from "aws-cdk-lib";
import * as ec2 from "aws-cdk-lib/aws-ec2";
import * as iam from "aws-cdk-lib/aws-iam";
import * as lambda from "aws-cdk-lib/aws-lambda";
import * as rds from "aws-cdk-lib/aws-rds";
import * as secretsmanager from "aws-cdk-lib/aws-secretsmanager";
import { IConstruct } from "constructs";
import { DbSetup } from "../lib/db-setup";
import { addDbSetup } from "./snippets/add-db-setup";
import { WithConstruct } from "./snippets/construct";
import { FirstRelease } from "./snippets/first-release";
import { WithFleet } from "./snippets/fleet";
import { WithSchemas } from "./snippets/fleet-of-schemas";
import { DB_SETUP, filesIn, idOf, newApp, ofType, onlyOf, resourcesOf, ROOT, temporaryFolder } from "./support";

const README = readFileSync(path.join(ROOT, "..", "README.md"), "utf8");
const BY_HAND = readFileSync(path.join(ROOT, "..", "docs", "frameworks", "cdk-by-hand.md"), "utf8");
const GUIDE = readFileSync(path.join(ROOT, "..", "databaseModificationGuide.md"), "utf8");
const shown = [...`${README}${BY_HAND}${GUIDE}`.matchAll(/^```typescript\n(.*?)^```$/gms)].map((match) => match[1]!);

/** A file of snippets: all of it, or what is between its lines `// <<<` and `// >>>`. */
function snippetOf(file: string): string {
  const text = readFileSync(path.join(__dirname, "snippets", file), "utf8");
  const parts = text.split("// <<<\n").slice(1);
  return parts.map((part) => part.split("// >>>\n")[0]!).join("\n") || text;
}

before(() => {
  // A project of a user: the snippets name their folders relative to it.
  const project = temporaryFolder();
  cpSync(DB_SETUP, path.join(project, "lambda", "db_setup"), { recursive: true });
  for (const layer of ["layer", "psycopg-layer"]) mkdirSync(path.join(project, layer, "python"), { recursive: true });
  process.chdir(project);
});

function instance(stack: Stack, vpc: ec2.Vpc): rds.DatabaseInstance {
  const engine = rds.DatabaseInstanceEngine.postgres({ version: rds.PostgresEngineVersion.VER_17 });
  return new rds.DatabaseInstance(stack, "Database", {
    engine,
    vpc,
    vpcSubnets: { subnets: [...vpc.isolatedSubnets, ...vpc.privateSubnets] },
    databaseName: "shop",
  });
}

function application(stack: Stack, vpc: ec2.Vpc): lambda.Function {
  return new lambda.Function(stack, "Application", {
    runtime: lambda.Runtime.NODEJS_22_X,
    handler: "index.handler",
    code: lambda.Code.fromInline("exports.handler = async () => 'hello'"),
    vpc,
  });
}

test("the snippets that are tested here are those that the README, its page by hand and the guide show", () => {
  const files = ["construct.ts", "first-release.ts", "add-db-setup.ts", "fleet.ts", "fleet-of-schemas.ts"];
  assert.deepEqual(shown, files.map(snippetOf));
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

test("the construct's snippet holds the application back until the database is ready, but not its security group", () => {
  const stack = new WithConstruct(newApp(), "Shop", (scope) => {
    const vpc = new ec2.Vpc(scope, "Vpc");
    return { vpc, database: instance(scope, vpc), application: application(scope, vpc) };
  });

  const resources = resourcesOf(stack); // throws where resources depend on each other in a circle

  const [trigger] = ofType(resources, "Custom::Trigger").map(([id]) => id);
  const waiting = Object.entries(resources).filter(([, { DependsOn = [] }]) => DependsOn.includes(trigger!));
  assert.deepEqual(
    waiting.map(([id, { Type }]) => [id.startsWith("Application"), Type]),
    [[true, "AWS::Lambda::Function"]],
  );
  const role = waiting[0]![1].Properties.Role["Fn::GetAtt"][0];
  const policies = ofType(resources, "AWS::IAM::Policy").map(([, policy]) => JSON.stringify(policy.Properties));
  const rights = policies.find((policy) => policy.includes(role))!;
  assert.ok(rights.includes("secretsmanager:GetSecretValue") && rights.includes(idOf(stack.userSecret)));
});

test("the guide's snippets bring databases and schemas up to date, these with a login for all", () => {
  for (const [Snippet, secrets] of [[WithFleet, 0], [WithSchemas, 1]] as const) {
    const stack = new Snippet(newApp(), "Shop", (scope) => {
      const vpc = new ec2.Vpc(scope, "Vpc");
      return { vpc, database: instance(scope, vpc) };
    });

    const resources = resourcesOf(stack);

    onlyOf(resources, "Custom::DbSetupFleet");
    const written = JSON.stringify(ofType(resources, "AWS::IAM::Policy")).split("secretsmanager:PutSecretValue").length - 1;
    assert.equal(written, secrets);
  }
});

// --- Where the VPC and the database can be --------------------------------------------------------------------------

/** What a stack has before db_setup is added to it. */
interface Place {
  readonly vpc: ec2.Vpc;
  readonly database: IConstruct & ec2.IConnectable & { readonly secret?: secretsmanager.ISecret };
  readonly adminSecret?: secretsmanager.ISecret;
  readonly endpoint?: ec2.IInterfaceVpcEndpoint;
}

const ISOLATED = { name: "Isolated", subnetType: ec2.SubnetType.PRIVATE_ISOLATED };

const PLACES: Record<string, (stack: Stack) => Place> = {
  "in a VPC with NAT": (stack) => {
    const vpc = new ec2.Vpc(stack, "Vpc");
    return { vpc, database: instance(stack, vpc) };
  },
  "in a VPC without NAT": (stack) => {
    const vpc = new ec2.Vpc(stack, "Vpc", { natGateways: 0, subnetConfiguration: [ISOLATED] });
    const service = ec2.InterfaceVpcEndpointAwsService.SECRETS_MANAGER;
    return { vpc, database: instance(stack, vpc), endpoint: vpc.addInterfaceEndpoint("Secrets", { service }) };
  },
  "with an imported database": (stack) => {
    const database = rds.DatabaseInstance.fromDatabaseInstanceAttributes(stack, "Database", {
      instanceIdentifier: "shop",
      instanceEndpointAddress: "shop.example.com",
      port: 5432,
      securityGroups: [ec2.SecurityGroup.fromSecurityGroupId(stack, "DatabaseGroup", "sg-0123456789abcdef0")],
    });
    const arn = "arn:aws:secretsmanager:eu-west-1:123456789012:secret:shop-admin-AbCdEf";
    const adminSecret = secretsmanager.Secret.fromSecretCompleteArn(stack, "Admin", arn);
    return { vpc: new ec2.Vpc(stack, "Vpc"), database, adminSecret };
  },
  "with a database in another stack": (stack) => {
    const other = new Stack(stack.node.root, "Database");
    const vpc = new ec2.Vpc(other, "Vpc");
    return { vpc, database: instance(other, vpc) };
  },
};

const WAYS: Record<string, (stack: Stack, place: Place) => lambda.Function> = {
  "the construct": (stack, { endpoint: secretsEndpoint, ...place }) => {
    const userSecret = new secretsmanager.Secret(stack, "UserSecret");
    const creatorSecret = new secretsmanager.Secret(stack, "TableCreatorSecret");
    return new DbSetup(stack, "DbSetup", { ...place, userSecret, creatorSecret, secretsEndpoint }).function;
  },
  "the snippet by hand": (stack, { vpc, database, adminSecret, endpoint }) => {
    const after = endpoint ? [endpoint] : [];
    return addDbSetup(stack, vpc, database, adminSecret ?? database.secret!, ...after).initializer;
  },
};

for (const [way, add] of Object.entries(WAYS)) {
  describe(way, () => {
    for (const [where, placeIn] of Object.entries(PLACES)) {
      test(`works ${where}: it runs after all that it needs, and may use its secrets and the port`, () => {
        const app = newApp();
        const stack = new Stack(app, "Shop");
        const place = placeIn(stack);

        const initializer = add(stack, place);

        const assembly = app.synth(); // throws where stacks depend on each other in a circle
        const messages = assembly.stacks.flatMap((each) => each.messages.map(({ entry }) => String(entry.data)));
        assert.deepEqual(
          messages.filter((message) => /egress|subnet/i.test(message)),
          [],
        );
        const resources = resourcesOf(stack);
        const after = onlyOf(resources, "Custom::Trigger").DependsOn!;
        const needed = [
          ...ofType(resources, "AWS::RDS::DBInstance"),
          ...ofType(resources, "AWS::EC2::SecurityGroupIngress"),
          ...ofType(resources, "AWS::EC2::VPCEndpoint"),
          ...ofType(resources, "AWS::SecretsManager::Secret"),
          ...ofType(resources, "AWS::SecretsManager::SecretTargetAttachment"),
        ].map(([id]) => id);
        assert.deepEqual(
          needed.filter((id) => !after.includes(id)),
          [],
        );
        // The ports are opened for the function, and for nothing else.
        const group = Stack.of(initializer).resolve(initializer.connections.securityGroups[0]!.securityGroupId);
        const opened = ofType(resources, "AWS::EC2::SecurityGroupIngress").map(([, rule]) => rule.Properties);
        assert.ok(opened.length > 0);
        for (const rule of opened) assert.deepEqual(rule.SourceSecurityGroupId, group);
        // A database of another stack is there first, and that stack needs nothing of this one.
        const other = Stack.of(place.database);
        assert.equal(stack.dependencies.includes(other), other !== stack);
        assert.deepEqual(other === stack ? [] : other.dependencies, []);
        const { Properties } = resources[idOf(initializer)]!;
        const { subnetIds } = place.vpc.selectSubnets({
          subnets: [...place.vpc.privateSubnets, ...place.vpc.isolatedSubnets],
        });
        assert.deepEqual(Properties.VpcConfig.SubnetIds, stack.resolve(subnetIds));
        assert.deepEqual(Object.keys(Properties.Environment.Variables), [
          "DB_PROXY",
          "DB_SECRET_NAME",
          "DB_USER_SECRET_NAME",
        ]);
        const mine = JSON.stringify(ofType(resources, "AWS::IAM::Policy").map(([, policy]) => policy.Properties));
        for (const action of ["secretsmanager:GetSecretValue", "secretsmanager:PutSecretValue"]) {
          assert.ok(mine.includes(action), action);
        }
      });
    }
  });
}

test("an application in another stack than its database is let in as the README says", () => {
  const app = newApp();
  const other = new Stack(app, "Database");
  const vpc = new ec2.Vpc(other, "Vpc");
  const database = instance(other, vpc);
  const stack = new Stack(app, "Shop");
  const own = application(stack, vpc);
  const statement = /write `application\.(.*?)` instead of the middle one/.exec(README.replace(/\s+/g, " "))![1];

  assert.equal(statement, "connections.allowToDefaultPort(database)");
  own.connections.allowToDefaultPort(database);

  app.synth(); // throws where stacks depend on each other in a circle
  assert.deepEqual([ofType(resourcesOf(stack), "AWS::EC2::SecurityGroupIngress").length, other.dependencies], [1, []]);
});

test("the snippet by hand leaves at home what only the terminal and readers need", () => {
  const app = newApp();
  const stack = new Stack(app, "Shop");
  const { vpc, database } = PLACES["in a VPC with NAT"]!(stack);
  const { initializer } = addDbSetup(stack, vpc, database, database.secret!);

  const { Properties } = resourcesOf(stack)[idOf(initializer)]!;

  const files = filesIn(path.join(app.outdir, `asset.${Properties.Code.S3Key.replace(".zip", "")}`));
  assert.ok(files.includes("initializer.py") && files.includes("migrations/001_initial_schema.sql"));
  assert.deepEqual(
    files.filter((file) => !/^\w+\.py$|^migrations\/\w+\.sql$|^rds_roots\/[\w-]+\.pem$/.test(file) || file === "__main__.py"),
    [],
  );
});
