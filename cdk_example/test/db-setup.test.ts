/** What CloudFormation is told: rights, network, order, and what must not be there. */
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { describe, test } from "node:test";
import { Duration, Stack } from "aws-cdk-lib";
import * as ec2 from "aws-cdk-lib/aws-ec2";
import * as kms from "aws-cdk-lib/aws-kms";
import * as lambda from "aws-cdk-lib/aws-lambda";
import * as logs from "aws-cdk-lib/aws-logs";
import * as rds from "aws-cdk-lib/aws-rds";
import * as secretsmanager from "aws-cdk-lib/aws-secretsmanager";
import { IConstruct } from "constructs";
import { DbSetup, DbSetupProps } from "../lib/db-setup";
import { ExampleStack, ExampleStackProps, postgresInstance } from "../lib/example-stack";
import { RUNTIME } from "../lib/psycopg-layer";
import { auroraServerless, instanceWithIam, instanceWithManagedSecret } from "../lib/variants";
import {
  DB_SETUP,
  ROOT,
  Resource,
  SUBNETS,
  idOf,
  idsIn,
  newApp,
  ofType,
  onlyOf,
  ownStack,
  resourcesOf,
} from "./support";

const FUNCTION = "AWS::Lambda::Function";

function example(props: ExampleStackProps = {}) {
  const stack = new ExampleStack(newApp(), "Example", props);
  const resources = resourcesOf(stack);
  const setUp = resources[idOf(stack.dbSetup.function)]!;
  return { stack, resources, setUp, trigger: onlyOf(resources, "Custom::Trigger") };
}

/** DbSetup in a stack whose VPC is there already. */
function setUpOf(props: Partial<DbSetupProps> | ((stack: Stack) => Partial<DbSetupProps>) = {}) {
  const { stack, dbSetup } = ownStack(newApp(), props);
  const resources = resourcesOf(stack);
  return { stack, dbSetup, resources, setUp: resources[idOf(dbSetup.function)]! };
}

/** All that a function's role may do, as "action resource" or "action resource condition". */
function rights(resources: Record<string, Resource>, setUp: Resource): string[] {
  const role = setUp.Properties.Role["Fn::GetAtt"][0];
  assert.equal(resources[role]!.Properties.Policies, undefined);
  const policies = Object.values(resources).filter(
    ({ Type, Properties }) =>
      ["AWS::IAM::Policy", "AWS::IAM::ManagedPolicy"].includes(Type) && JSON.stringify(Properties.Roles).includes(role),
  );
  return policies
    .flatMap((policy) => policy.Properties.PolicyDocument.Statement)
    .flatMap((statement) =>
      [statement.Action].flat().flatMap((action: string) =>
        [statement.Resource].flat().map((resource) => {
          const condition = statement.Condition ? [JSON.stringify(statement.Condition)] : [];
          return [statement.Effect, action, JSON.stringify(resource), ...condition].join(" ");
        }),
      ),
    )
    .sort();
}

/** Where a security group lets traffic out, in rules of its own and in separate ones. */
function egressOf(resources: Record<string, Resource>, group: { "Fn::GetAtt": string[] }): object[] {
  const inline = resources[group["Fn::GetAtt"][0]!]!.Properties.SecurityGroupEgress ?? [];
  const others = ofType(resources, "AWS::EC2::SecurityGroupEgress").map(([, { Properties }]) => Properties);
  const own = others.filter(({ GroupId }) => JSON.stringify(GroupId) === JSON.stringify(group));
  return [...inline, ...own]
    .filter((rule) => rule.CidrIp !== "255.255.255.255/32") // CDK's word for: nowhere
    .map(({ Description, GroupId, IpProtocol, ...rule }) => {
      assert.equal(IpProtocol, "tcp");
      return rule;
    });
}

const get = (arn: unknown) => `Allow secretsmanager:GetSecretValue ${JSON.stringify(arn)}`;
const put = (arn: unknown) => `Allow secretsmanager:PutSecretValue ${JSON.stringify(arn)}`;

const databases = { postgresInstance, auroraServerless, instanceWithManagedSecret };

for (const [name, database] of Object.entries(databases)) {
  describe(name, () => {
    const { stack, resources, setUp, trigger } = example({ database });
    const child = (id: string) => stack.node.findChild(id);
    const ref = (construct: IConstruct) => ({ Ref: idOf(construct) });
    const adminArn =
      name === "instanceWithManagedSecret"
        ? { "Fn::GetAtt": [idOf(child("Database")), "MasterUserSecret.SecretArn"] }
        : ref(child("Database").node.findChild("Secret").node.findChild("Attachment"));
    const userArn = ref(child("UserSecret"));
    const creatorArn = ref(child("TableCreatorSecret"));
    const databaseGroup = { "Fn::GetAtt": [idOf(child("Database").node.findChild("SecurityGroup")), "GroupId"] };
    const ownGroup = { "Fn::GetAtt": [idOf(stack.dbSetup.node.findChild("SecurityGroup")), "GroupId"] };
    const endpoint = child("Vpc").node.findChild("Secrets") as ec2.InterfaceVpcEndpoint;
    const endpointGroup = { "Fn::GetAtt": [idOf(endpoint.node.findChild("SecurityGroup")), "GroupId"] };
    const port = { "Fn::GetAtt": [idOf(child("Database")), "Endpoint.Port"] };

    test("reads exactly the three secrets and writes exactly the two", () => {
      const expected = [get(adminArn), get(userArn), get(creatorArn), put(userArn), put(creatorArn)];

      assert.deepEqual(rights(resources, setUp), expected.sort());
    });

    test("has no other right than to log and to be in a VPC", () => {
      const role = resources[setUp.Properties.Role["Fn::GetAtt"][0]]!;
      const names = role.Properties.ManagedPolicyArns.map((arn: any) => arn["Fn::Join"][1].at(-1).split("/").at(-1));

      assert.deepEqual(names.sort(), ["AWSLambdaBasicExecutionRole", "AWSLambdaVPCAccessExecutionRole"]);
    });

    test("is given ARNs", () => {
      const { DB_SECRET_NAME, DB_USER_SECRET_NAME, DB_PROXY } = setUp.Properties.Environment.Variables;

      assert.deepEqual([DB_SECRET_NAME, DB_USER_SECRET_NAME, DB_PROXY], [adminArn, userArn, creatorArn]);
    });

    test("alone may reach the database and the endpoint", () => {
      const ingress = ofType(resources, "AWS::EC2::SecurityGroupIngress").map(([, { Properties }]) => Properties);

      for (const group of [databaseGroup, endpointGroup]) {
        assert.equal(resources[group["Fn::GetAtt"][0]!]!.Properties.SecurityGroupIngress, undefined);
      }
      const rules = ingress.map(({ Description, ...rule }) => rule);
      const from = { SourceSecurityGroupId: ownGroup, IpProtocol: "tcp" };
      assert.deepEqual(rules, [
        { ...from, GroupId: endpointGroup, FromPort: 443, ToPort: 443 },
        { ...from, GroupId: databaseGroup, FromPort: port, ToPort: port },
      ]);
      const instances = [...ofType(resources, "AWS::RDS::DBInstance")];
      assert.deepEqual([...new Set(instances.map(([, instance]) => instance.Properties.PubliclyAccessible))], [false]);
    });

    test("may itself go to the database and the endpoint, and nowhere else", () => {
      const to = (group: object, port: unknown) => ({ DestinationSecurityGroupId: group, FromPort: port, ToPort: port });

      assert.deepEqual(egressOf(resources, ownGroup), [to(databaseGroup, port), to(endpointGroup, 443)]);
    });

    test("and nobody from elsewhere, may use the endpoint for these secrets alone", () => {
      const [{ Resource, ...statement }, ...others] = resources[idOf(endpoint)]!.Properties.PolicyDocument.Statement;

      const texts = (arns: object[]) => arns.map((arn) => JSON.stringify(arn)).sort();
      assert.deepEqual(texts(Resource), texts([adminArn, userArn, creatorArn]));
      assert.deepEqual(statement, {
        Effect: "Allow",
        Principal: { AWS: "*" },
        Action: ["secretsmanager:GetSecretValue", "secretsmanager:PutSecretValue"],
        Condition: { StringEquals: { "aws:PrincipalAccount": { Ref: "AWS::AccountId" } } },
      });
      assert.deepEqual(others, []);
    });

    test("runs in the VPC's isolated subnets", () => {
      const vpc = child("Vpc") as ec2.Vpc;

      assert.deepEqual(setUp.Properties.VpcConfig, {
        SecurityGroupIds: [ownGroup],
        SubnetIds: vpc.isolatedSubnets.map((subnet) => stack.resolve(subnet.subnetId)),
      });
      assert.equal(vpc.isolatedSubnets.length, 2);
      assert.deepEqual(ofType(resources, "AWS::EC2::NatGateway"), []);
      assert.deepEqual(ofType(resources, "AWS::EC2::InternetGateway"), []);
    });

    test("runs after the database, the rules, the endpoint, the secrets and the log", () => {
      const needed = [
        ...idsIn(child("Database")),
        ...idsIn(child("UserSecret")),
        ...idsIn(child("TableCreatorSecret")),
        ...idsIn(child("Vpc").node.findChild("Secrets")),
        ...ofType(resources, "AWS::EC2::SecurityGroupIngress").map(([id]) => id),
        ...ofType(resources, "AWS::EC2::SecurityGroupEgress").map(([id]) => id),
        ...ofType(resources, "AWS::RDS::DBInstance").map(([id]) => id),
        ...idsIn(stack.dbSetup.logGroup),
      ];

      assert.deepEqual(
        needed.filter((id) => !trigger.DependsOn!.includes(id)),
        [],
      );
      assert.ok(needed.length >= 15, `only ${needed}`);
    });

    test("has its rights before it runs", () => {
      const role = stack.dbSetup.function.role!;

      assert.deepEqual(
        idsIn(role).filter((id) => !setUp.DependsOn!.includes(id)),
        [],
      );
      assert.deepEqual(trigger.Properties.HandlerArn, { Ref: idOf(stack.dbSetup.function.currentVersion) });
    });
  });
}

describe("the example", () => {
  test("is the same in two syntheses", () => {
    assert.deepEqual(example().resources, example().resources);
  });

  test("has no date and no fixed name", () => {
    const { resources, setUp } = example();

    assert.equal(setUp.Properties.Description, "Database initializer and migration runner");
    assert.equal(setUp.Properties.FunctionName, undefined);
    assert.doesNotMatch(JSON.stringify(resources), /20\d\d-\d\d-\d\dT/);
    const named = /^(RoleName|SecretName|LogGroupName|DBInstanceIdentifier|DBClusterIdentifier|AlarmName)$/;
    for (const [id, { Type, Properties = {} }] of Object.entries(resources)) {
      const names = Object.keys(Properties).filter(
        (key) => named.test(key) || (key === "Name" && Type.includes("Secret")),
      );
      assert.deepEqual(
        names.filter((key) => typeof Properties[key] === "string"),
        [],
        id,
      );
    }
  });

  test("runs on a current Python with the documented size and time", () => {
    const { setUp } = example();
    const { Runtime, Handler, MemorySize, Timeout, Architectures } = setUp.Properties;

    assert.deepEqual(
      { Runtime, Handler, MemorySize, Timeout, Architectures },
      {
        Runtime: RUNTIME.name,
        Handler: "initializer.handler",
        MemorySize: 512,
        Timeout: 300,
        Architectures: ["x86_64"],
      },
    );
  });

  test("is not tried again by Lambda, neither at its latest code nor at its version", () => {
    const { resources, stack } = example();
    const configs = ofType(resources, "AWS::Lambda::EventInvokeConfig").map(([, { Properties }]) => Properties);
    const version = { "Fn::GetAtt": [idOf(stack.dbSetup.function.currentVersion), "Version"] };

    assert.deepEqual(
      configs.map((config) => config.MaximumRetryAttempts),
      [0, 0],
    );
    assert.deepEqual(
      configs.map((config) => config.Qualifier),
      ["$LATEST", version],
    );
  });

  test("logs JSON to a group that ends some day and outlives the stack", () => {
    const { resources, setUp, stack } = example();
    const group = resources[idOf(stack.dbSetup.logGroup)]!;

    assert.deepEqual(setUp.Properties.LoggingConfig, {
      LogFormat: "JSON",
      LogGroup: { Ref: idOf(stack.dbSetup.logGroup) },
    });
    assert.equal(group.Properties.RetentionInDays, 365);
    assert.equal(group.DeletionPolicy, "Retain");
  });

  test("raises an alarm at the first error", () => {
    const { resources, stack } = example();
    const { MetricName, Namespace, Dimensions, Statistic, Threshold, EvaluationPeriods, ...rest } =
      resources[idOf(stack.dbSetup.errorsAlarm)]!.Properties;

    assert.deepEqual([Namespace, MetricName, Statistic], ["AWS/Lambda", "Errors", "Sum"]);
    assert.deepEqual(Dimensions, [{ Name: "FunctionName", Value: { Ref: idOf(stack.dbSetup.function) } }]);
    assert.deepEqual([Threshold, EvaluationPeriods, rest.ComparisonOperator], [1, 1, "GreaterThanOrEqualToThreshold"]);
    assert.equal(rest.TreatMissingData, "notBreaching");
  });

  test("counts what the last line of a run says", () => {
    const { resources, stack } = example();
    const filters = ofType(resources, "AWS::Logs::MetricFilter").map(([, { Properties }]) => Properties);
    const [transformations, groups] = [
      filters.flatMap((each) => each.MetricTransformations),
      filters.map((each) => each.LogGroupName),
    ];

    assert.deepEqual([...new Set(filters.map((filter) => filter.FilterPattern))], ["{ $.failed >= 0 }", "{ $.drift >= 0 }"]);
    assert.deepEqual(groups, Array(5).fill({ Ref: idOf(stack.dbSetup.logGroup) }));
    assert.deepEqual(
      transformations.map(({ MetricName, MetricValue, Unit }) => [MetricName, MetricValue, Unit]).sort(),
      [
        ["applied", "$.applied", "Count"],
        ["drift", "$.drift", "Count"],
        ["duration_ms", "$.duration_ms", "Milliseconds"],
        ["failed", "$.failed", "Count"],
        ["lock_wait_ms", "$.lock_wait_ms", "Milliseconds"],
      ],
    );
    assert.deepEqual(
      [...new Set(transformations.map((each) => each.MetricNamespace))],
      [stack.dbSetup.metricNamespace],
    );
    assert.match(stack.dbSetup.metricNamespace, /^DbSetup\/Example-DbSetup/);
  });

  test("says where the rest of a managed login is", () => {
    const { stack, setUp } = example({ database: instanceWithManagedSecret });
    const database = idOf(stack.node.findChild("Database"));
    const { DB_HOST, DB_PORT, DB_NAME } = setUp.Properties.Environment.Variables;

    assert.deepEqual(DB_HOST, { "Fn::GetAtt": [database, "Endpoint.Address"] });
    assert.deepEqual(DB_PORT, { "Fn::GetAtt": [database, "Endpoint.Port"] });
    assert.equal(DB_NAME, "shop");
  });

  test("needs neither a secret nor an endpoint where everybody signs in by IAM", () => {
    const { resources, setUp } = example({ database: instanceWithIam });
    const { Properties: database } = onlyOf(resources, "AWS::RDS::DBInstance");
    const variables = setUp.Properties.Environment.Variables;

    for (const absent of ["AWS::SecretsManager::Secret", "AWS::EC2::VPCEndpoint"]) {
      assert.deepEqual(ofType(resources, absent), []);
    }
    assert.deepEqual([variables.DB_USER, variables.DB_NAME, variables.USERS_SIGN_IN], ["shop_admin", "shop", "iam"]);
    assert.equal(variables.DB_SECRET_NAME, undefined);
    assert.equal(database.MasterUserAuthenticationType, "iam-db-auth");
    assert.deepEqual(
      [database.EnableIAMDatabaseAuthentication, database.MasterUserPassword, database.ManageMasterUserPassword],
      [true, undefined, undefined],
    );
    // To the database, and nowhere else.
    assert.equal(ofType(resources, "AWS::EC2::SecurityGroupEgress").length, 1);
    const allowed = rights(resources, setUp).filter((right) => !/ (logs|ec2):/.test(right));
    assert.deepEqual(
      allowed.map((right) => /^Allow rds-db:connect .*\/([a-z_]+)"/.exec(right)?.[1]).sort(),
      ["app_rw", "app_rw_clone", "app_tc", "app_tc_clone", "shop_admin"],
    );
  });

  test("lets Secrets Manager rotate what it writes, and nothing else", () => {
    const { resources, setUp } = setUpOf((stack) => ({
      userSecret: new secretsmanager.Secret(stack, "User"),
      rotateEvery: Duration.days(30),
    }));
    const { Properties: schedule, DependsOn: first = [] } = onlyOf(resources, "AWS::SecretsManager::RotationSchedule");

    // Secrets Manager tries a new schedule: the run that writes the secret comes before.
    assert.ok([first].flat().some((name) => resources[name!]?.Type === "Custom::Trigger"));
    assert.deepEqual(schedule.SecretId, setUp.Properties.Environment.Variables.DB_USER_SECRET_NAME);
    assert.equal(schedule.RotationRules.ScheduleExpression, "rate(30 days)");
    assert.equal(schedule.RotateImmediatelyOnUpdate, false);
    assert.ok(rights(resources, setUp).some((right) => right.includes("secretsmanager:UpdateSecretVersionStage")));
    const { Properties: permission } = onlyOf(resources, "AWS::Lambda::Permission");
    assert.equal(permission.Principal, "secretsmanager.amazonaws.com");
  });

  test("asks where the database of an admin without a secret is", () => {
    assert.throws(() => setUpOf({ adminByIam: "admin" }), /needs DB_HOST and DB_NAME in environment/);
  });

  test("lets Aurora go down to zero", () => {
    const { resources } = example({ database: auroraServerless });

    const scaling = onlyOf(resources, "AWS::RDS::DBCluster").Properties.ServerlessV2ScalingConfiguration;
    assert.deepEqual(scaling, { MinCapacity: 0, MaxCapacity: 2, SecondsUntilAutoPause: 600 });
  });

  test("takes a snapshot before the database goes", () => {
    for (const [name, database] of Object.entries(databases)) {
      const { resources, stack } = example({ database });
      assert.equal(resources[idOf(stack.node.findChild("Database"))]!.DeletionPolicy, "Snapshot", name);
    }
  });

  test("refuses a database that app.ts does not know", () => {
    const environment = { ...process.env, CDK_CONTEXT_JSON: '{"database": "oracle"}' };

    const run = spawnSync(process.execPath, ["--import", "tsx", "bin/app.ts"], {
      cwd: ROOT,
      env: environment,
      encoding: "utf8",
    });

    assert.notEqual(run.status, 0);
    assert.match(run.stderr, /-c database=oracle is none of: instance, aurora, managed, iam\./);
  });
});

describe("DbSetup", () => {
  test("takes what its props say", () => {
    const { setUp, resources } = setUpOf({
      architecture: lambda.Architecture.ARM_64,
      memorySize: 1024,
      timeout: Duration.minutes(10),
      environment: { ROLE_PREFIX: "shop_", LOCK_TIMEOUT: "2s" },
      logRetention: logs.RetentionDays.ONE_WEEK,
      metricNamespace: "Shop",
      vpcSubnets: { subnetFilters: [ec2.SubnetFilter.availabilityZones(["eu-west-1b"])] },
    });
    const { Variables } = setUp.Properties.Environment;
    const filter = ofType(resources, "AWS::Logs::MetricFilter")[0]![1];

    assert.deepEqual(setUp.Properties.Architectures, ["arm64"]);
    assert.deepEqual(onlyOf(resources, "AWS::Lambda::LayerVersion").Properties.CompatibleArchitectures, ["arm64"]);
    assert.deepEqual([setUp.Properties.MemorySize, setUp.Properties.Timeout], [1024, 600]);
    assert.deepEqual([Variables.ROLE_PREFIX, Variables.LOCK_TIMEOUT], ["shop_", "2s"]);
    assert.equal(onlyOf(resources, "AWS::Logs::LogGroup").Properties.RetentionInDays, 7);
    assert.equal(filter.Properties.MetricTransformations[0].MetricNamespace, "Shop");
    assert.deepEqual(setUp.Properties.VpcConfig.SubnetIds, [SUBNETS[1]]);
  });

  test("takes a layer that is there already", () => {
    const arn = "arn:aws:lambda:eu-west-1:123456789012:layer:psycopg2:1";

    const { setUp, resources } = setUpOf((stack) => ({
      layer: lambda.LayerVersion.fromLayerVersionArn(stack, "Layer", arn),
    }));

    assert.deepEqual(setUp.Properties.Layers, [arn]);
    assert.deepEqual(ofType(resources, "AWS::Lambda::LayerVersion"), []);
  });

  test("ends before the trigger loses patience, and the trigger before its own limit", () => {
    const { resources, setUp } = setUpOf({ timeout: Duration.minutes(13) });
    const provider = ofType(resources, FUNCTION).find(([id]) => id.includes("TriggerCustomResource"))![1];
    const patience_s = Number(onlyOf(resources, "Custom::Trigger").Properties.Timeout) / 1000;

    assert.ok(setUp.Properties.Timeout + 30 <= patience_s);
    assert.ok(patience_s + 30 <= provider.Properties.Timeout);
    assert.throws(
      () => setUpOf({ timeout: Duration.seconds(13 * 60 + 1) }),
      /^Error: DbSetup: a timeout above 13 minutes/,
    );
  });

  test("without secrets for logins reads one secret and writes none", () => {
    const { resources, setUp, stack } = setUpOf();
    const admin = stack.node.findChild("Database").node.findChild("Secret").node.findChild("Attachment");

    assert.deepEqual(rights(resources, setUp), [get({ Ref: idOf(admin) })]);
    assert.deepEqual(Object.keys(setUp.Properties.Environment.Variables), ["DB_SECRET_NAME"]);
  });

  test("does not let `environment` name other secrets than those that it has rights on", () => {
    const environment = { DB_SECRET_NAME: "other" } as DbSetupProps["environment"];

    const { setUp } = setUpOf({ environment });

    assert.notEqual(setUp.Properties.Environment.Variables.DB_SECRET_NAME, "other");
  });

  test("takes secrets that were imported by name or by ARN", () => {
    const arn = "arn:aws:secretsmanager:eu-west-1:123456789012:secret:admin-AbCdEf";

    const { resources, setUp } = setUpOf((stack) => ({
      adminSecret: secretsmanager.Secret.fromSecretCompleteArn(stack, "Admin", arn),
      userSecret: secretsmanager.Secret.fromSecretNameV2(stack, "User", "shop-user"),
    }));

    const [read, readUser, write] = rights(resources, setUp);
    assert.equal(read, get(arn));
    assert.match(readUser!, /GetSecretValue .*:secret:shop-user-\?{6}"/);
    assert.match(write!, /PutSecretValue .*:secret:shop-user-\?{6}"/);
    assert.equal(rights(resources, setUp).length, 3);
  });

  test("uses a customer's key through Secrets Manager only", () => {
    let key: kms.Key;

    const { stack, resources, setUp } = setUpOf((scope) => {
      key = new kms.Key(scope, "Key");
      return { userSecret: new secretsmanager.Secret(scope, "User", { encryptionKey: key }) };
    });

    const arn = JSON.stringify(stack.resolve(key!.keyArn));
    const service = { "Fn::Join": ["", ["secretsmanager.", { Ref: "AWS::Region" }, ".amazonaws.com"]] };
    const condition = JSON.stringify({ StringEquals: { "kms:ViaService": service } });
    assert.deepEqual(
      rights(resources, setUp).filter((right) => right.includes("kms:")),
      [`Allow kms:Decrypt ${arn} ${condition}`, `Allow kms:GenerateDataKey ${arn} ${condition}`],
    );
  });

  test("reaches a database in another stack, and waits for the rule that lets it", () => {
    const app = newApp();
    const data = new Stack(app, "Data");
    const vpc = new ec2.Vpc(data, "Vpc", {
      natGateways: 0,
      subnetConfiguration: [{ name: "Isolated", subnetType: ec2.SubnetType.PRIVATE_ISOLATED }],
    });
    const { database } = postgresInstance(data, vpc);
    const own = new Stack(app, "Own");
    new DbSetup(own, "DbSetup", { vpc, database, codePath: DB_SETUP });

    const resources = resourcesOf(own);

    const [[rule]] = ofType(resources, "AWS::EC2::SecurityGroupIngress") as [[string, Resource]];
    assert.ok(onlyOf(resources, "Custom::Trigger").DependsOn!.includes(rule));
    assert.deepEqual(
      own.dependencies.map((stack) => stack.stackName),
      ["Data"],
    );
    assert.deepEqual(data.dependencies, []);
  });

  test("lets an application wait for the run", () => {
    const stack = new ExampleStack(newApp(), "Example");
    const { vpc, database } = {
      vpc: stack.node.findChild("Vpc") as ec2.Vpc,
      database: stack.node.findChild("Database"),
    };
    const application = new lambda.Function(stack, "Application", {
      runtime: RUNTIME,
      handler: "index.handler",
      code: lambda.Code.fromInline("def handler(event, context): pass"),
      vpc,
    });

    (stack.node.findChild("UserSecret") as secretsmanager.Secret).grantRead(application);
    (database as rds.DatabaseInstance).connections.allowDefaultPortFrom(application);
    application.node.defaultChild!.node.addDependency(stack.dbSetup.trigger);

    const [[trigger]] = ofType(resourcesOf(stack), "Custom::Trigger") as [[string, Resource]];
    assert.ok(resourcesOf(stack)[idOf(application)]!.DependsOn!.includes(trigger));
  });

  const HTTPS = { FromPort: 443, ToPort: 443 };
  const WITH_NAT = { vpcId: "vpc-0123456789abcdef0", availabilityZones: ["eu-west-1a"], privateSubnetIds: ["subnet-1"], privateSubnetRouteTableIds: ["rtb-1"] };
  const places: Record<string, [(stack: Stack) => Partial<DbSetupProps>, object]> = {
    "isolated subnets": [() => ({}), { CidrIp: "10.1.0.0/16", ...HTTPS }],
    "subnets with a NAT gateway": [
      (stack) => ({ vpc: ec2.Vpc.fromVpcAttributes(stack, "WithNat", WITH_NAT) }),
      { CidrIp: "0.0.0.0/0", ...HTTPS },
    ],
    "isolated subnets next to others": [
      (stack) => ({
        vpc: ec2.Vpc.fromVpcAttributes(stack, "Both", {
          ...WITH_NAT,
          vpcCidrBlock: "10.2.0.0/16",
          isolatedSubnetIds: ["subnet-2"],
          isolatedSubnetRouteTableIds: ["rtb-2"],
        }),
        vpcSubnets: { subnetType: ec2.SubnetType.PRIVATE_ISOLATED },
      }),
      { CidrIp: "10.2.0.0/16", ...HTTPS },
    ],
    "any subnets, with an imported endpoint": [
      (stack) => ({
        vpc: ec2.Vpc.fromVpcAttributes(stack, "WithNat", WITH_NAT),
        secretsEndpoint: ec2.InterfaceVpcEndpoint.fromInterfaceVpcEndpointAttributes(stack, "Secrets", {
          vpcEndpointId: "vpce-0123456789abcdef0",
          port: 443,
          securityGroups: [ec2.SecurityGroup.fromSecurityGroupId(stack, "SecretsGroup", "sg-0123456789abcdef0")],
        }),
      }),
      { DestinationSecurityGroupId: "sg-0123456789abcdef0", ...HTTPS },
    ],
  };
  for (const [where, [props, expected]] of Object.entries(places)) {
    test(`goes no further than it must from ${where}`, () => {
      const { resources, dbSetup } = setUpOf(props);
      const group = { "Fn::GetAtt": [idOf(dbSetup.node.findChild("SecurityGroup")), "GroupId"] };

      const rules = egressOf(resources, group).map(JSON.stringify as (rule: object) => string);
      const toDatabase = rules.filter((rule) => rule.includes("DestinationSecurityGroupId") && rule.includes("Database"));
      assert.equal(toDatabase.length, 1);
      const others = rules.filter((rule) => !toDatabase.includes(rule)).map((rule) => JSON.parse(rule));
      assert.deepEqual(others, [expected]);
      const opened = ofType(resources, "AWS::EC2::SecurityGroupIngress").map(([id]) => id);
      const { DependsOn } = onlyOf(resources, "Custom::Trigger");
      assert.deepEqual(opened.filter((id) => !DependsOn!.includes(id)), []);
    });
  }

  test("asks for the admin's secret where the database has none", () => {
    const without = (stack: Stack): Partial<DbSetupProps> => ({
      database: rds.DatabaseInstance.fromDatabaseInstanceAttributes(stack, "Imported", {
        instanceIdentifier: "shop",
        instanceEndpointAddress: "shop.example.com",
        port: 5432,
        securityGroups: [ec2.SecurityGroup.fromSecurityGroupId(stack, "Group", "sg-0123456789abcdef0")],
      }),
    });

    assert.throws(() => setUpOf(without), /^Error: DbSetup: the database has no secret of its own\. .* adminSecret\.$/);
  });

  test("opens the port of an imported database, and runs after that", () => {
    const { resources } = setUpOf((stack) => ({
      adminSecret: secretsmanager.Secret.fromSecretNameV2(stack, "Admin", "admin"),
      database: rds.DatabaseInstance.fromDatabaseInstanceAttributes(stack, "Imported", {
        instanceIdentifier: "shop",
        instanceEndpointAddress: "shop.example.com",
        port: 5433,
        securityGroups: [ec2.SecurityGroup.fromSecurityGroupId(stack, "Group", "sg-0123456789abcdef0")],
      }),
    }));

    const [[id, rule]] = ofType(resources, "AWS::EC2::SecurityGroupIngress") as [[string, Resource]];
    assert.deepEqual([rule.Properties.GroupId, rule.Properties.FromPort], ["sg-0123456789abcdef0", 5433]);
    assert.ok(onlyOf(resources, "Custom::Trigger").DependsOn!.includes(id));
  });
});
