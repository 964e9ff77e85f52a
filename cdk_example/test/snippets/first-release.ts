/** The snippet with which db_setup was first published, between the two lines, and the names that it expects around it. */
import { Duration, Stack } from "aws-cdk-lib";
import * as ec2 from "aws-cdk-lib/aws-ec2";
import * as iam from "aws-cdk-lib/aws-iam";
import * as lambda from "aws-cdk-lib/aws-lambda";
import * as rds from "aws-cdk-lib/aws-rds";
import * as secretsmanager from "aws-cdk-lib/aws-secretsmanager";
import * as triggers from "aws-cdk-lib/triggers";
import { Construct } from "constructs";

export interface Surroundings {
  readonly db: {
    readonly dbInstance: rds.DatabaseInstance;
    readonly secretPathAdminName: string;
    readonly secretPathUser: secretsmanager.ISecret;
    readonly secretPathTableCreator: secretsmanager.ISecret;
  };
  readonly psycopgLambdaLayer: lambda.ILayerVersion;
  readonly lambdaRole: iam.IRole;
}

export class FirstRelease extends Stack {
  readonly initializer: lambda.Function;
  readonly db: Surroundings["db"];

  constructor(scope: Construct, id: string, surround: (stack: Stack, vpc: ec2.Vpc) => Surroundings) {
    super(scope, id);
    const { db, psycopgLambdaLayer, lambdaRole } = surround(this, new ec2.Vpc(this, "Vpc"));

// <<<
const initializerLambda = new triggers.TriggerFunction(
  this,
  `${id}-triggerLambda`,
  {
    description: `Database initializer and migration runner - ${new Date().toISOString()}`,
    functionName: `${id}-initializerFunction`,
    runtime: lambda.Runtime.PYTHON_3_9,
    handler: "initializer.handler",
    timeout: Duration.seconds(300),
    memorySize: 512,
    environment: {
      DB_SECRET_NAME: db.secretPathAdminName,
      DB_USER_SECRET_NAME: db.secretPathUser.secretName, // Optional
      DB_PROXY: db.secretPathTableCreator.secretName, // Optional
    },
    vpc: db.dbInstance.vpc,
    code: lambda.Code.fromAsset("lambda/db_setup"),
    layers: [psycopgLambdaLayer],
    role: lambdaRole,
  }
);
// >>>

    this.initializer = initializerLambda;
    this.db = db;
  }
}
