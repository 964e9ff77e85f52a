import { App } from "aws-cdk-lib";
import { ExampleStack, postgresInstance } from "../lib/example-stack";
import { auroraServerless, instanceWithIam, instanceWithManagedSecret } from "../lib/variants";

const databases = {
  instance: postgresInstance,
  aurora: auroraServerless,
  managed: instanceWithManagedSecret,
  iam: instanceWithIam,
};

const app = new App();
const chosen: string = app.node.tryGetContext("database") ?? "instance";
if (!(chosen in databases)) {
  throw new Error(`-c database=${chosen} is none of: ${Object.keys(databases).join(", ")}.`);
}
new ExampleStack(app, "DbSetupExample", { database: databases[chosen as keyof typeof databases] });
