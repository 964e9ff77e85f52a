/** The README's snippet with the construct: its imports and its statements, each between two lines, in a stack. */
import { Stack } from "aws-cdk-lib";
import * as ec2 from "aws-cdk-lib/aws-ec2";
import * as lambda from "aws-cdk-lib/aws-lambda";
import * as rds from "aws-cdk-lib/aws-rds";
import { Construct } from "constructs";
// <<<
import * as secretsmanager from "aws-cdk-lib/aws-secretsmanager";
import { DbSetup } from "./db-setup";
// >>>

export interface Surroundings {
  readonly vpc: ec2.IVpc;
  readonly database: rds.DatabaseInstance;
  readonly application: lambda.Function;
}

export class WithConstruct extends Stack {
  readonly dbSetup: DbSetup;
  readonly userSecret: secretsmanager.ISecret;

  constructor(scope: Construct, id: string, surround: (stack: Stack) => Surroundings) {
    super(scope, id);
    const { vpc, database, application } = surround(this);

// <<<
const userSecret = new secretsmanager.Secret(this, "UserSecret"); // will hold the application's login
const dbSetup = new DbSetup(this, "DbSetup", { vpc, database, userSecret });

userSecret.grantRead(application);
database.connections.allowDefaultPortFrom(application);
application.node.defaultChild!.node.addDependency(dbSetup.trigger);
// >>>

    this.dbSetup = dbSetup;
    this.userSecret = userSecret;
  }
}
