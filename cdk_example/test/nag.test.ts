/** cdk-nag's rules for AWS solutions, on all three databases: what it finds is accepted here with a reason, or fails. */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import * as path from "node:path";
import { test } from "node:test";
import { Validations } from "aws-cdk-lib";
import { AwsSolutionsChecks } from "cdk-nag";
import { ExampleStack, ExampleStackProps, postgresInstance } from "../lib/example-stack";
import { auroraServerless, instanceWithManagedSecret } from "../lib/variants";
import { newApp } from "./support";

const DATABASE = "Example/Database/Resource";
const FUNCTION = "Example/DbSetup/Function";
const MANAGED = "AwsSolutions-IAM4[Policy::arn:<AWS::Partition>:iam::aws:policy/service-role";

/** "rule construct", and why that stays as it is. */
const ACCEPTED: Record<string, string> = {
  [`${MANAGED}/AWSLambdaBasicExecutionRole] ${FUNCTION}/ServiceRole/Resource`]:
    "It allows nothing but to write logs. Every right on secrets and keys names its resource.",
  [`${MANAGED}/AWSLambdaVPCAccessExecutionRole] ${FUNCTION}/ServiceRole/Resource`]:
    "Lambda needs it to put a function into a VPC. AWS defines no narrower resource for most of these actions.",
  [`AwsSolutions-L1 ${FUNCTION}/Resource`]:
    "Python 3.13 is supported until 2029. The layer's hashes and the tests are for what RUNTIME names.",
  [`AwsSolutions-RDS3 ${DATABASE}`]: "A second zone doubles the price. Set multiAz where the database has to survive one.",
  [`AwsSolutions-RDS6 ${DATABASE}`]: "The logins have passwords, which db_setup makes and rotates. IAM logins are a choice.",
  [`AwsSolutions-RDS10 ${DATABASE}`]: "npm run destroy has to work. The removal policy keeps a snapshot.",
  [`AwsSolutions-RDS11 ${DATABASE}`]: "Another port hides nothing: the security group lets in the function alone.",
  "AwsSolutions-SMG4 Example/Database/Secret/Resource":
    "The variant `managed` has a password that RDS rotates. A rotation by AWS needs a function of its own in the VPC.",
  "AwsSolutions-SMG4 Example/UserSecret/Resource": "db_setup rotates it when the event asks for that, see docs/users-and-rights.md.",
  "AwsSolutions-SMG4 Example/TableCreatorSecret/Resource": "As UserSecret.",
  "AwsSolutions-VPC7 Example/Vpc/Resource": "Flow logs cost money and are the account's decision. This VPC has no way out.",
};

/** What cdk-nag finds, as "rule construct". */
function findingsFor(database: ExampleStackProps["database"]): string[] {
  const app = newApp();
  Validations.of(app).addPlugins(new AwsSolutionsChecks(app));
  new ExampleStack(app, "Example", { database });
  assert.throws(() => app.synth(), /ValidationFailed/);
  const { pluginReports } = JSON.parse(readFileSync(path.join(app.outdir, "validation-report.json"), "utf8"));
  return pluginReports.flatMap(({ violations }: any) =>
    violations.flatMap(({ ruleName, violatingConstructs }: any) =>
      violatingConstructs.map(({ constructPath }: any) => `${ruleName} ${constructPath}`),
    ),
  );
}

test("cdk-nag finds nothing but what is accepted, and nothing is accepted in vain", (context) => {
  context.mock.method(console, "error", () => {}); // the whole report
  const found = [postgresInstance, auroraServerless, instanceWithManagedSecret].flatMap(findingsFor);

  assert.deepEqual([...new Set(found)].sort(), Object.keys(ACCEPTED).sort());
});
