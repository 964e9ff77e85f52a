/** The guide's snippet for a schema per tenant, in a stack. */
import { Stack } from "aws-cdk-lib";
import * as secretsmanager from "aws-cdk-lib/aws-secretsmanager";
import { Construct } from "constructs";
import { DbSetupFleet } from "./db-setup-fleet";
import { Server } from "./fleet";

export class WithSchemas extends Stack {
  constructor(scope: Construct, id: string, surround: (stack: Stack) => Server) {
    super(scope, id);
    const { vpc, database } = surround(this);

// <<<
const userSecret = new secretsmanager.Secret(this, "UserSecret"); // will hold the login of all tenants
new DbSetupFleet(this, "Fleet", {
  vpc,
  database,
  schemas: { like: "tenant_%" }, // or { names: ["tenant_0001"] }, or { bucket, key }
  userSecret,
  maxConcurrency: 8,
});
// >>>
  }
}
