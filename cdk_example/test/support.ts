import { cpSync, mkdtempSync, readFileSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import * as path from "node:path";
import { App, CfnElement, Stack } from "aws-cdk-lib";
import { Template } from "aws-cdk-lib/assertions";
import * as ec2 from "aws-cdk-lib/aws-ec2";
import { IConstruct } from "constructs";
import { DbSetup, DbSetupProps } from "../lib/db-setup";
import { postgresInstance } from "../lib/example-stack";

export const ROOT = path.join(__dirname, "..");
export const DB_SETUP = path.join(ROOT, "..", "db_setup");

export type Resource = { Type: string; Properties: Record<string, any>; DependsOn?: string[]; DeletionPolicy?: string };

const temporary = mkdtempSync(path.join(tmpdir(), "cdk-example-"));
process.on("exit", () => rmSync(temporary, { recursive: true, force: true }));

/** A folder that goes when the tests end. */
export function temporaryFolder(): string {
  return mkdtempSync(path.join(temporary, "folder-"));
}

/** A copy of db_setup that a test may change. */
export function copyOfDbSetup(): string {
  const folder = path.join(temporaryFolder(), "db_setup");
  cpSync(DB_SETUP, folder, { recursive: true, filter: (source) => path.basename(source) !== "__pycache__" });
  return folder;
}

/** An app with the flags of cdk.json. Layers are not put together, so that no test but the layer's own needs pip. */
export function newApp(): App {
  const { context } = JSON.parse(readFileSync(path.join(ROOT, "cdk.json"), "utf8"));
  return new App({ outdir: temporaryFolder(), context: { ...context, "aws:cdk:bundling-stacks": [] } });
}

export const SUBNETS = ["subnet-0123456789abcdef0", "subnet-0123456789abcdef1"];

/** A VPC that is there already. */
export function vpcOf(stack: Stack): ec2.IVpc {
  return ec2.Vpc.fromVpcAttributes(stack, "Vpc", {
    vpcId: "vpc-0123456789abcdef0",
    vpcCidrBlock: "10.1.0.0/16",
    availabilityZones: ["eu-west-1a", "eu-west-1b"],
    isolatedSubnetIds: SUBNETS,
    isolatedSubnetRouteTableIds: ["rtb-0123456789abcdef0", "rtb-0123456789abcdef0"],
  });
}

/** DbSetup, and a database for it, in a stack whose VPC is there already. */
export function ownStack(app: App, props: Partial<DbSetupProps> | ((stack: Stack) => Partial<DbSetupProps>) = {}) {
  const stack = new Stack(app, "Own");
  const vpc = vpcOf(stack);
  const further = typeof props === "function" ? props(stack) : props;
  const dbSetup = new DbSetup(stack, "DbSetup", {
    vpc,
    ...postgresInstance(stack, vpc),
    codePath: DB_SETUP,
    ...further,
  });
  return { stack, dbSetup };
}

/** The stack's resources by their logical ids; throws where they depend on each other in a circle. */
export function resourcesOf(stack: Stack): Record<string, Resource> {
  return Template.fromStack(stack).toJSON().Resources;
}

export function ofType(resources: Record<string, Resource>, type: string): [string, Resource][] {
  return Object.entries(resources).filter(([, resource]) => resource.Type === type);
}

export function onlyOf(resources: Record<string, Resource>, type: string): Resource {
  const found = ofType(resources, type);
  if (found.length !== 1) throw new Error(`${found.length} resources are of type ${type}`);
  return found[0]![1];
}

/** The logical ids of everything that a construct brings. */
export function idsIn(construct: IConstruct): string[] {
  const elements = construct.node.findAll().filter((each) => CfnElement.isCfnElement(each));
  return elements.map((element) => Stack.of(element).resolve(element.logicalId) as string);
}

export function idOf(construct: IConstruct): string {
  return Stack.of(construct).resolve((construct.node.defaultChild as CfnElement).logicalId);
}

/** The files below a folder, by their relative names. */
export function filesIn(folder: string): string[] {
  const entries = readdirSync(folder, { recursive: true, withFileTypes: true });
  const files = entries.filter((entry) => !entry.isDirectory());
  return files.map((file) => path.relative(folder, path.join(file.parentPath, file.name)).replaceAll("\\", "/")).sort();
}
