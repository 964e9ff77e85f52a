import { Duration, IgnoreMode, Names, Stack } from "aws-cdk-lib";
import * as cloudwatch from "aws-cdk-lib/aws-cloudwatch";
import * as ec2 from "aws-cdk-lib/aws-ec2";
import * as iam from "aws-cdk-lib/aws-iam";
import * as lambda from "aws-cdk-lib/aws-lambda";
import * as logs from "aws-cdk-lib/aws-logs";
import * as secretsmanager from "aws-cdk-lib/aws-secretsmanager";
import * as triggers from "aws-cdk-lib/triggers";
import { Construct, IConstruct, IDependable } from "constructs";
import { PsycopgLayer, RUNTIME } from "./psycopg-layer";

/** The variables of db_setup that are not secrets; its README says what they mean. */
export type DbSetupVariable =
  | ("DB_HOST" | "DB_PORT" | "DB_NAME" | "CREATE_USERS" | "LOCK_TIMEOUT" | "BASELINE" | "ALLOW_EDITED_MIGRATIONS" | "FAIL_ON_DRIFT" | "DEPLOYMENT")
  | ("DB_SCHEMA" | "MIGRATIONS_TABLE" | "ROLE_PREFIX" | "PGSSLMODE" | "PGSSLROOTCERT" | "PGCONNECT_TIMEOUT" | "PGREQUIREAUTH" | "PGCHANNELBINDING");

export interface DbSetupProps {
  /** The PostgreSQL instance or cluster, no proxy. Its port is opened for the function. */
  readonly database: IConstruct &
    ec2.IConnectable & { readonly secret?: secretsmanager.ISecret; grantConnect?(to: iam.IGrantable, user: string): iam.Grant };

  /** The admin's login. @default - the secret that the database was made with */
  readonly adminSecret?: secretsmanager.ISecret;

  /**
   * The admin's name, if it signs in by IAM and not by a password. It is allowed to connect; DB_HOST and DB_NAME have to
   * be in `environment`.
   * @default - the admin has a secret
   */
  readonly adminByIam?: string;

  /**
   * The users sign in by IAM: they have no passwords, and need no secrets. The function is allowed to connect as them;
   * for an application use the database's grantConnect(application, "app_rw"). Without any secret, Secrets Manager and
   * its endpoint are not needed.
   * @default false
   */
  readonly usersByIam?: boolean;

  /** Receives the login of the application, which may read and write. @default - no such login is made */
  readonly userSecret?: secretsmanager.ISecret;

  /** Receives the login that may create tables as well. @default - no such login is made */
  readonly creatorSecret?: secretsmanager.ISecret;

  /** Receives a login that only reads. @default - no such login is made */
  readonly readerSecret?: secretsmanager.ISecret;

  /** How often Secrets Manager rotates the users' secrets, with this function. @default - never */
  readonly rotateEvery?: Duration;

  /** Where the function runs. It has to reach the database and Secrets Manager. */
  readonly vpc: ec2.IVpc;

  /**
   * The VPC's interface endpoint for Secrets Manager. The function may then connect to it and to the database, and to
   * nothing else, and a run waits for it.
   * @default - HTTPS to the VPC's addresses from isolated subnets; to any address from others, because a NAT gateway
   * leads to Secrets Manager's public addresses, and these change
   */
  readonly secretsEndpoint?: ec2.IInterfaceVpcEndpoint;

  /** The subnets in it. @default - private subnets, or isolated ones where there are no others */
  readonly vpcSubnets?: ec2.SubnetSelection;

  /** The folder with initializer.py and migrations/. @default "lambda/db_setup" */
  readonly codePath?: string;

  /** Further variables. @default - none */
  readonly environment?: { readonly [name in DbSetupVariable]?: string };

  /**
   * What else has to be there before a run.
   * @default - the database, the secrets, secretsEndpoint and the rules that open ports: they need not be named
   */
  readonly executeAfter?: IDependable[];

  /**
   * How long one run may take, 13 minutes at most. db_setup stops itself 20 seconds earlier, and says what is left.
   * @default Duration.minutes(5)
   */
  readonly timeout?: Duration;

  /** Memory in MiB, enough for migrations of 50 MB. @default 512 */
  readonly memorySize?: number;

  /** What the function runs on. @default lambda.Architecture.X86_64 */
  readonly architecture?: lambda.Architecture;

  /** psycopg2 for RUNTIME on this architecture. @default - a layer that pip puts together during synthesis */
  readonly layer?: lambda.ILayerVersion;

  /** How long the log is kept. @default logs.RetentionDays.ONE_YEAR */
  readonly logRetention?: logs.RetentionDays;

  /**
   * The namespace of the metrics: `applied`, `failed`, `duration_ms` and `lock_wait_ms`, one value for each run; and
   * `drift`, how many objects others have changed, for each run that has looked.
   * @default - "DbSetup/" and a name made of the construct's path
   */
  readonly metricNamespace?: string;
}

/** The function with its rights, its log, metrics and alarm. Nothing invokes it. */
export class DbSetupFunction extends Construct {
  readonly function: lambda.Function;
  /** What has to be there before a run. */
  readonly needed: IDependable[];
  readonly errorsAlarm: cloudwatch.Alarm;
  readonly logGroup: logs.LogGroup;
  readonly metricNamespace: string;

  constructor(scope: Construct, id: string, props: DbSetupProps) {
    super(scope, id);
    const { database, userSecret, creatorSecret, readerSecret, architecture = lambda.Architecture.X86_64 } = props;
    const adminSecret = props.adminByIam ? undefined : (props.adminSecret ?? database.secret);
    if (props.adminByIam && !(props.environment?.DB_HOST && props.environment.DB_NAME)) {
      throw new Error(`${id}: an admin that signs in by IAM needs DB_HOST and DB_NAME in environment.`);
    }
    if (!adminSecret && !props.adminByIam) {
      throw new Error(
        `${id}: the database has no secret of its own. Name the one with the admin's login in adminSecret.`,
      );
    }

    // It may go to Secrets Manager and to the database, and nowhere else.
    const securityGroup = new ec2.SecurityGroup(this, "SecurityGroup", { vpc: props.vpc, allowAllOutbound: false });
    // Said from the function's side, so that the database and the endpoint can be in another stack.
    const reached: ec2.IConnectable[] = [database, ...(props.secretsEndpoint ? [props.secretsEndpoint] : [])];
    for (const one of reached) securityGroup.connections.allowToDefaultPort(one);
    const writable = usersSecrets(props);
    const secrets = [...(adminSecret ? [adminSecret] : []), ...writable];
    if (!props.secretsEndpoint && secrets.length) {
      securityGroup.addEgressRule(secretsManagerFrom(props), ec2.Port.HTTPS, "Secrets Manager");
    }
    // Kept when the stack goes: after a first deployment that failed, it is all that says why.
    this.logGroup = new logs.LogGroup(this, "Log", { retention: props.logRetention ?? logs.RetentionDays.ONE_YEAR });
    this.function = new lambda.Function(this, "Function", {
      // No date and no name: a change of the migrations is a change of the code, and a fixed name fails when
      // CloudFormation has to replace the function.
      description: "Database initializer and migration runner",
      runtime: RUNTIME,
      architecture,
      handler: "initializer.handler",
      code: lambda.Code.fromAsset(props.codePath ?? "lambda/db_setup", ASSET),
      layers: [props.layer ?? new PsycopgLayer(this, "Psycopg", { architecture })],
      timeout: props.timeout ?? Duration.minutes(5),
      memorySize: props.memorySize ?? 512,
      vpc: props.vpc,
      vpcSubnets: props.vpcSubnets,
      securityGroups: [securityGroup],
      environment: {
        ...props.environment,
        ...(adminSecret ? { DB_SECRET_NAME: adminSecret.secretArn } : { DB_USER: props.adminByIam! }),
        ...(props.usersByIam && { USERS_SIGN_IN: "iam" }),
        ...(userSecret && { DB_USER_SECRET_NAME: userSecret.secretArn }),
        ...(creatorSecret && { DB_PROXY: creatorSecret.secretArn }),
        ...(readerSecret && { DB_READER_SECRET_NAME: readerSecret.secretArn }),
      },
      logGroup: this.logGroup,
      loggingFormat: lambda.LoggingFormat.JSON,
      // An asynchronous run that failed would fail again: the file has to be fixed first.
      retryAttempts: 0,
      currentVersionOptions: { retryAttempts: 0 },
    });

    this.allow("secretsmanager:GetSecretValue", "kms:Decrypt", secrets);
    this.allow("secretsmanager:PutSecretValue", "kms:GenerateDataKey", writable);
    for (const login of loginsByIam(props, this.prefixOf(props))) database.grantConnect!(this.function, login);

    // The rules that open ports are in the security groups, and the metric filters in the log group.
    const rules = [securityGroup, ...reached.flatMap(({ connections }) => connections.securityGroups)];
    this.needed = [database, ...rules, this.logGroup, ...secrets];
    this.needed.push(...(props.secretsEndpoint ? [props.secretsEndpoint] : []), ...(props.executeAfter ?? []));

    this.errorsAlarm = this.function.metricErrors({ period: Duration.minutes(5) }).createAlarm(this, "ErrorsAlarm", {
      alarmDescription: `A run of ${this.node.path} failed. Its log says which file and line, and what to do.`,
      threshold: 1,
      evaluationPeriods: 1,
      treatMissingData: cloudwatch.TreatMissingData.NOT_BREACHING,
    });
    this.metricNamespace =
      props.metricNamespace ?? `DbSetup/${Names.uniqueResourceName(this, { separator: "-", maxLength: 200 })}`;
    for (const name of ["applied", "failed", "duration_ms", "lock_wait_ms", "drift"]) {
      this.logGroup.addMetricFilter(name, {
        // Only the last line of a run has "failed", whether it says "done" or "failed", and perhaps "drift".
        filterPattern: logs.FilterPattern.numberValue(name === "drift" ? "$.drift" : "$.failed", ">=", 0),
        metricNamespace: this.metricNamespace,
        metricName: name,
        metricValue: `$.${name}`,
        unit: name.endsWith("_ms") ? cloudwatch.Unit.MILLISECONDS : cloudwatch.Unit.COUNT,
      });
    }
  }

  /** What precedes the logins' names. */
  protected prefixOf(props: DbSetupProps): string {
    return props.environment?.ROLE_PREFIX ?? "";
  }

  /** One action on these secrets, and its counterpart on their keys where they have keys of their own. */
  private allow(action: string, keyAction: string, secrets: secretsmanager.ISecret[]): void {
    const give = (actions: string[], resources: string[], conditions = {}) =>
      resources.length && this.function.addToRolePolicy(new iam.PolicyStatement({ actions, resources, conditions }));
    // A secret that was imported by its name has no complete ARN; AWS adds six characters to its name.
    give(
      [action],
      secrets.map((secret) => secret.secretFullArn ?? `${secret.secretArn}-??????`),
    );
    give(
      [keyAction],
      secrets.flatMap((secret) => secret.encryptionKey?.keyArn ?? []),
      {
        StringEquals: { "kms:ViaService": `secretsmanager.${Stack.of(this).region}.amazonaws.com` },
      },
    );
  }
}

/** Brings a PostgreSQL database up to date at every deployment that changes a migration, or anything else here. */
export class DbSetup extends DbSetupFunction {
  readonly trigger: triggers.Trigger;

  constructor(scope: Construct, id: string, props: DbSetupProps) {
    super(scope, id, props);
    const timeout = props.timeout ?? Duration.minutes(5);
    if (timeout.toSeconds() > 13 * 60) {
      throw new Error(`${id}: a timeout above 13 minutes would outlive the trigger, which has 15 for everything.`);
    }
    this.trigger = new triggers.Trigger(this, "Trigger", {
      handler: this.function,
      // Longer than the function can take: a trigger that loses patience invokes again while the first run is at work.
      timeout: timeout.plus(Duration.minutes(1)),
    });
    this.trigger.node.addDependency(...this.needed);
    usersSecrets(props).forEach((secret, number) => {
      if (!props.rotateEvery) return;
      // Of this construct, not of the secret, on which the trigger depends: Secrets Manager tries a new schedule with a
      // step, which needs a secret that the run of this deployment has written.
      const schedule = new secretsmanager.RotationSchedule(this, `Rotation${number}`, {
        secret,
        rotationLambda: this.function,
        automaticallyAfter: props.rotateEvery,
        rotateImmediatelyOnUpdate: false,
      });
      schedule.node.addDependency(this.trigger);
    });
  }
}

/** The secrets that receive the users' logins. */
function usersSecrets({ userSecret, creatorSecret, readerSecret }: DbSetupProps): secretsmanager.ISecret[] {
  return [userSecret, creatorSecret, readerSecret].filter((secret) => secret !== undefined);
}

/** As whom the function signs in by IAM: each user has a second login, with which it changes over and rotates. */
function loginsByIam({ adminByIam, usersByIam, readerSecret }: DbSetupProps, prefix: string): string[] {
  const users = usersByIam ? ["app_rw", "app_tc", ...(readerSecret ? ["app_ro"] : [])] : [];
  return [...(adminByIam ? [adminByIam] : []), ...users.flatMap((name) => [prefix + name, `${prefix}${name}_clone`])];
}

/** Where Secrets Manager can be, if nobody names its endpoint: isolated subnets have no way out of the VPC. */
function secretsManagerFrom({ vpc, vpcSubnets }: DbSetupProps): ec2.IPeer {
  const isolated = new Set(vpc.isolatedSubnets);
  const isOpen = vpc.selectSubnets(vpcSubnets).subnets.some((subnet) => !isolated.has(subnet));
  return isOpen ? ec2.Peer.anyIpv4() : ec2.Peer.ipv4(vpc.vpcCidrBlock);
}

/** Modules, migrations and root certificates go along; caches, notes and the entry for the terminal stay at home. */
const ASSET = {
  ignoreMode: IgnoreMode.GIT,
  exclude: [
    "*",
    "!/*.py",
    "/__main__.py",
    "!/migrations/",
    "!/migrations/**/",
    "!/migrations/**/*.sql",
    "!/global-bundle.pem",
    "!/rds_roots/",
    "!/rds_roots/*.pem",
  ],
};
