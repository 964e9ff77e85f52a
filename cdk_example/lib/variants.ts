import { Duration, RemovalPolicy } from "aws-cdk-lib";
import * as ec2 from "aws-cdk-lib/aws-ec2";
import * as rds from "aws-cdk-lib/aws-rds";
import { Construct } from "constructs";
import type { Database } from "./example-stack";

/** Aurora Serverless v2 that pauses when nobody is connected. The run that wakes it waits about 15 seconds for it. */
export function auroraServerless(scope: Construct, vpc: ec2.IVpc): Database {
  const database = new rds.DatabaseCluster(scope, "Database", {
    // Pausing needs 13.15, 14.12, 15.7, 16.3 or newer.
    engine: rds.DatabaseClusterEngine.auroraPostgres({ version: rds.AuroraPostgresEngineVersion.VER_17_7 }),
    writer: rds.ClusterInstance.serverlessV2("Writer"),
    serverlessV2MinCapacity: 0,
    serverlessV2MaxCapacity: 2,
    serverlessV2AutoPauseDuration: Duration.minutes(10),
    storageEncrypted: true,
    vpc,
    vpcSubnets: { subnetType: ec2.SubnetType.PRIVATE_ISOLATED },
    defaultDatabaseName: "shop",
    credentials: rds.Credentials.fromGeneratedSecret("shop_admin"),
    backup: { retention: Duration.days(7) },
    removalPolicy: RemovalPolicy.SNAPSHOT,
  });
  return { database };
}

/** The instance with a password that RDS makes and rotates. Its secret holds a login only: the rest has to be said. */
export function instanceWithManagedSecret(scope: Construct, vpc: ec2.IVpc): Database {
  const database = new rds.DatabaseInstance(scope, "Database", {
    engine: rds.DatabaseInstanceEngine.postgres({ version: rds.PostgresEngineVersion.VER_17 }),
    instanceType: ec2.InstanceType.of(ec2.InstanceClass.T4G, ec2.InstanceSize.MICRO),
    allocatedStorage: 20,
    storageType: rds.StorageType.GP3,
    storageEncrypted: true,
    vpc,
    vpcSubnets: { subnetType: ec2.SubnetType.PRIVATE_ISOLATED },
    databaseName: "shop",
    credentials: rds.Credentials.fromUsername("shop_admin"),
    manageMasterUserPassword: true,
    backupRetention: Duration.days(7),
    removalPolicy: RemovalPolicy.SNAPSHOT,
  });
  const environment = {
    DB_HOST: database.instanceEndpoint.hostname,
    DB_PORT: database.dbInstanceEndpointPort,
    DB_NAME: "shop",
  };
  return { database, environment };
}

/** The instance without any password: the admin and the users sign in by IAM. There are no secrets, and no endpoint. */
export function instanceWithIam(scope: Construct, vpc: ec2.IVpc): Database {
  const { database, environment } = instanceWithManagedSecret(scope, vpc);
  const instance = (database as rds.DatabaseInstance).node.defaultChild as rds.CfnDBInstance;
  instance.manageMasterUserPassword = undefined;
  instance.enableIamDatabaseAuthentication = true;
  instance.masterUserAuthenticationType = "iam-db-auth";
  return { database, environment, adminByIam: "shop_admin", usersByIam: true };
}
