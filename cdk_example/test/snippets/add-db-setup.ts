import { Duration } from "aws-cdk-lib";
import * as ec2 from "aws-cdk-lib/aws-ec2";
import * as lambda from "aws-cdk-lib/aws-lambda";
import * as secretsmanager from "aws-cdk-lib/aws-secretsmanager";
import * as triggers from "aws-cdk-lib/triggers";
import { Construct, IConstruct, IDependable } from "constructs";

export function addDbSetup(
  scope: Construct,
  vpc: ec2.IVpc,
  database: IConstruct & ec2.IConnectable,
  adminSecret: secretsmanager.ISecret,
  ...after: IDependable[]
) {
  const userSecret = new secretsmanager.Secret(scope, "UserSecret");
  const creatorSecret = new secretsmanager.Secret(scope, "TableCreatorSecret");
  const layer = new lambda.LayerVersion(scope, "Psycopg", { code: lambda.Code.fromAsset("psycopg-layer") });

  const initializer = new triggers.TriggerFunction(scope, "DbSetup", {
    description: "Database initializer and migration runner",
    runtime: lambda.Runtime.PYTHON_3_13,
    handler: "initializer.handler",
    code: lambda.Code.fromAsset("lambda/db_setup", { exclude: ["**/__pycache__", "__main__.py", "*.md"] }),
    layers: [layer],
    timeout: Duration.minutes(5),
    memorySize: 512,
    vpc,
    allowAllOutbound: false,
    environment: {
      DB_SECRET_NAME: adminSecret.secretArn,
      DB_USER_SECRET_NAME: userSecret.secretArn, // Optional
      DB_PROXY: creatorSecret.secretArn, // Optional
    },
  });
  adminSecret.grantRead(initializer);
  for (const secret of [userSecret, creatorSecret]) {
    secret.grantRead(initializer);
    secret.grantWrite(initializer);
  }
  initializer.connections.allowToDefaultPort(database);
  initializer.connections.allowToAnyIpv4(ec2.Port.HTTPS, "Secrets Manager");

  // Not before the database, the rules that open its port and the way to Secrets Manager exist.
  const rules = [...database.connections.securityGroups, ...initializer.connections.securityGroups];
  initializer.trigger.node.addDependency(database, adminSecret, userSecret, creatorSecret, ...rules, ...after);
  return { initializer, userSecret, creatorSecret };
}
