/** The guide's snippet for a database per tenant, in a stack. */
import { Stack } from "aws-cdk-lib";
import * as ec2 from "aws-cdk-lib/aws-ec2";
import * as rds from "aws-cdk-lib/aws-rds";
import { Construct } from "constructs";
// <<<
import { DbSetupFleet } from "./db-setup-fleet";
// >>>

export interface Server {
  readonly vpc: ec2.IVpc;
  readonly database: rds.DatabaseInstance;
}

export class WithFleet extends Stack {
  constructor(scope: Construct, id: string, surround: (stack: Stack) => Server) {
    super(scope, id);
    const { vpc, database } = surround(this);

// <<<
new DbSetupFleet(this, "Fleet", {
  vpc,
  database,
  databases: { like: "tenant_%" }, // or { names: ["tenant_0001"] }, or { bucket, key }: a JSON file in S3
  environment: { CREATE_USERS: "false" },
  maxConcurrency: 8,
});
// >>>
  }
}
