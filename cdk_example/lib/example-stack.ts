import * as path from "node:path";
import { CfnOutput, Duration, RemovalPolicy, Stack, StackProps } from "aws-cdk-lib";
import * as ec2 from "aws-cdk-lib/aws-ec2";
import * as iam from "aws-cdk-lib/aws-iam";
import * as rds from "aws-cdk-lib/aws-rds";
import * as secretsmanager from "aws-cdk-lib/aws-secretsmanager";
import { Construct } from "constructs";
import { DbSetup, DbSetupProps } from "./db-setup";

/** A database, and what DbSetup has to be told about it. */
export type Database = Pick<DbSetupProps, "database" | "adminSecret" | "adminByIam" | "usersByIam" | "environment">;

export interface ExampleStackProps extends StackProps {
  /**
   * Makes the database.
   *
   * @default postgresInstance; variants.ts has others
   */
  readonly database?: (scope: Construct, vpc: ec2.IVpc) => Database;
}

/** A database in a VPC without a way to the internet, and its migrations. */
export class ExampleStack extends Stack {
  readonly dbSetup: DbSetup;

  constructor(scope: Construct, id: string, props: ExampleStackProps = {}) {
    super(scope, id, props);
    const vpc = new ec2.Vpc(this, "Vpc", {
      maxAzs: 2,
      natGateways: 0,
      subnetConfiguration: [{ name: "Isolated", subnetType: ec2.SubnetType.PRIVATE_ISOLATED }],
    });
    const database = (props.database ?? postgresInstance)(this, vpc);
    const logins = database.usersByIam ? {} : this.secretsFor(vpc, database);

    this.dbSetup = new DbSetup(this, "DbSetup", {
      ...database,
      ...logins,
      vpc,
      codePath: path.join(__dirname, "..", "..", "db_setup"),
    });

    new CfnOutput(this, "FunctionName", { value: this.dbSetup.function.functionName });
    new CfnOutput(this, "LogGroupName", { value: this.dbSetup.logGroup.logGroupName });
  }

  /** The users' secrets, and the way to them. */
  private secretsFor(vpc: ec2.IVpc, { database, adminSecret }: Database) {
    // Without a NAT gateway this is the only way to Secrets Manager. It costs less than one. DbSetup opens it for its
    // function alone; an application that reads its login asks for secretsEndpoint.connections.allowDefaultPortFrom.
    const secretsEndpoint = vpc.addInterfaceEndpoint("Secrets", {
      service: ec2.InterfaceVpcEndpointAwsService.SECRETS_MANAGER,
      open: false,
    });

    // Their first value is of no use: DbSetup writes the logins that it makes.
    const userSecret = new secretsmanager.Secret(this, "UserSecret", { description: "Login of the application" });
    const creatorSecret = new secretsmanager.Secret(this, "TableCreatorSecret", {
      description: "Login that may create tables",
    });

    // The endpoint leads to every secret of every account. Through it goes what this account does with these three.
    secretsEndpoint.addToPolicy(
      new iam.PolicyStatement({
        principals: [new iam.AnyPrincipal()],
        actions: ["secretsmanager:GetSecretValue", "secretsmanager:PutSecretValue"],
        resources: [adminSecret ?? database.secret!, userSecret, creatorSecret].map((secret) => secret.secretArn),
        conditions: { StringEquals: { "aws:PrincipalAccount": this.account } },
      }),
    );
    new CfnOutput(this, "UserSecretArn", { value: userSecret.secretArn });
    new CfnOutput(this, "TableCreatorSecretArn", { value: creatorSecret.secretArn });
    return { secretsEndpoint, userSecret, creatorSecret };
  }
}

/** A small PostgreSQL instance. CDK makes its password, and a secret that also says where the database is. */
export function postgresInstance(scope: Construct, vpc: ec2.IVpc): Database {
  const database = new rds.DatabaseInstance(scope, "Database", {
    // The major version alone: RDS chooses the minor one, and raises it in the maintenance window.
    engine: rds.DatabaseInstanceEngine.postgres({ version: rds.PostgresEngineVersion.VER_17 }),
    instanceType: ec2.InstanceType.of(ec2.InstanceClass.T4G, ec2.InstanceSize.MICRO),
    allocatedStorage: 20,
    storageType: rds.StorageType.GP3,
    storageEncrypted: true,
    vpc,
    vpcSubnets: { subnetType: ec2.SubnetType.PRIVATE_ISOLATED },
    databaseName: "shop",
    credentials: rds.Credentials.fromGeneratedSecret("shop_admin"),
    backupRetention: Duration.days(7),
    removalPolicy: RemovalPolicy.SNAPSHOT,
  });
  return { database };
}
