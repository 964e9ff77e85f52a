import * as path from "node:path";
import { App, Stack } from "aws-cdk-lib";
import * as ec2 from "aws-cdk-lib/aws-ec2";
import * as s3 from "aws-cdk-lib/aws-s3";
import { DbSetupFleet } from "../lib/db-setup-fleet";
import { postgresInstance } from "../lib/example-stack";

/** A database per tenant; with "schemas" a schema. Other props by -c fleet='{"maxConcurrency": 16}'; there, "s3" is the key of a file of names. */
const app = new App();
const stack = new Stack(app, "DbSetupFleetExample");
const vpc = new ec2.Vpc(stack, "Vpc", {
  maxAzs: 2,
  natGateways: 0,
  subnetConfiguration: [{ name: "Isolated", subnetType: ec2.SubnetType.PRIVATE_ISOLATED }],
});
const secretsEndpoint = vpc.addInterfaceEndpoint("Secrets", { service: ec2.InterfaceVpcEndpointAwsService.SECRETS_MANAGER });
const { s3: key, ...props } = JSON.parse(app.node.tryGetContext("fleet") ?? "{}");
const bucket = key && s3.Bucket.fromBucketName(stack, "Tenants", "results");
new DbSetupFleet(stack, "Fleet", {
  vpc,
  ...postgresInstance(stack, vpc),
  secretsEndpoint,
  codePath: path.join(__dirname, "..", "..", "db_setup"),
  environment: { CREATE_USERS: "false" },
  ...(!props.schemas && { databases: key ? { bucket, key } : { like: "tenant_%" } }),
  ...props,
});
