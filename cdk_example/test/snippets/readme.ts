/** The snippet of the README, between the two lines, and the names that it expects around it. */
import { Duration, Stack } from "aws-cdk-lib";
import * as ec2 from "aws-cdk-lib/aws-ec2";
import * as lambda from "aws-cdk-lib/aws-lambda";
import * as rds from "aws-cdk-lib/aws-rds";
import * as secretsmanager from "aws-cdk-lib/aws-secretsmanager";
import * as triggers from "aws-cdk-lib/triggers";
import { Construct } from "constructs";

export interface Surroundings {
  readonly database: rds.DatabaseInstance;
  readonly secretsEndpoint: ec2.InterfaceVpcEndpoint;
}

export class Readme extends Stack {
  readonly initializer: lambda.Function;

  constructor(scope: Construct, id: string, surround: (stack: Stack, vpc: ec2.Vpc) => Surroundings) {
    super(scope, id);
    const vpc = new ec2.Vpc(this, "Vpc", {
      natGateways: 0,
      subnetConfiguration: [{ name: "Isolated", subnetType: ec2.SubnetType.PRIVATE_ISOLATED }],
    });
    const { database, secretsEndpoint } = surround(this, vpc);

// <<<
const userSecret = new secretsmanager.Secret(this, "UserSecret");
const creatorSecret = new secretsmanager.Secret(this, "TableCreatorSecret");

const initializer = new triggers.TriggerFunction(this, "DbSetup", {
  description: "Database initializer and migration runner",
  runtime: lambda.Runtime.PYTHON_3_13,
  handler: "initializer.handler",
  code: lambda.Code.fromAsset("lambda/db_setup", { exclude: ["**/__pycache__", "__main__.py"] }),
  layers: [
    new lambda.LayerVersion(this, "Psycopg", { code: lambda.Code.fromAsset("layer") }),
  ],
  timeout: Duration.minutes(5),
  memorySize: 512,
  vpc,
  vpcSubnets: { subnetType: ec2.SubnetType.PRIVATE_ISOLATED },
  environment: {
    DB_SECRET_NAME: database.secret!.secretArn,
    DB_USER_SECRET_NAME: userSecret.secretArn, // Optional
    DB_PROXY: creatorSecret.secretArn, // Optional
  },
  executeAfter: [database, secretsEndpoint, userSecret, creatorSecret],
});

database.connections.allowDefaultPortFrom(initializer);
database.secret!.grantRead(initializer);
for (const secret of [userSecret, creatorSecret]) {
  secret.grantRead(initializer);
  secret.grantWrite(initializer);
}
// >>>

    this.initializer = initializer;
  }
}
