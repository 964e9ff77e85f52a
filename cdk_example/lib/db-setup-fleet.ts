import { ArnFormat, CustomResource, Duration, Names, Stack } from "aws-cdk-lib";
import * as iam from "aws-cdk-lib/aws-iam";
import * as lambda from "aws-cdk-lib/aws-lambda";
import * as logs from "aws-cdk-lib/aws-logs";
import * as s3 from "aws-cdk-lib/aws-s3";
import * as sfn from "aws-cdk-lib/aws-stepfunctions";
import * as tasks from "aws-cdk-lib/aws-stepfunctions-tasks";
import * as cr from "aws-cdk-lib/custom-resources";
import { Construct } from "constructs";
import { DbSetupFunction, DbSetupProps } from "./db-setup";
import { RUNTIME } from "./psycopg-layer";

/** Variables of a run that an event may set, besides DB_NAME and DB_SCHEMA. */
export type RunVariable =
  | ("DB_USER_SECRET_NAME" | "DB_PROXY" | "DB_READER_SECRET_NAME" | "ROLE_PREFIX" | "CREATE_USERS")
  | ("BASELINE" | "ALLOW_EDITED_MIGRATIONS" | "FAIL_ON_DRIFT" | "MIGRATIONS_TABLE" | "LOCK_TIMEOUT" | "DEPLOYMENT");

/**
 * Which ones: those whose names are like a pattern of SQL, a list, or a JSON file in S3, such as
 * [{"name": "tenant_0001"}, {"name": "tenant_0002"}].
 */
export type Tenants =
  | { readonly like: string }
  | { readonly names: string[] }
  | { readonly bucket: s3.IBucket; readonly key: string };

export interface DbSetupFleetProps extends Omit<DbSetupProps, "rotateEvery"> {
  /** Which databases of the server. Either these, or `schemas`. */
  readonly databases?: Tenants;

  /** Which schemas of one database, that of DB_NAME or of the secret. A run makes one that is missing. */
  readonly schemas?: Tenants;

  /**
   * How many of them are migrated at a time. Each run has at most three connections: stay below a third of what
   * max_connections leaves to you. A server with few CPUs gains nothing above four times their number.
   * @default 8
   */
  readonly maxConcurrency?: number;

  /** How many are migrated first, one by one. If one of them fails, no other is begun. @default 1 */
  readonly canaries?: number;

  /** Makes a database that does not exist; only for a list or a file. @default false: it is a failure */
  readonly createMissing?: boolean;

  /**
   * The variables of each run, in which {name} is the name of its database or schema, such as { ROLE_PREFIX: "{name}_",
   * DB_USER_SECRET_NAME: "shop/{name}" }. The function gets the rights on such secrets; they have to exist.
   * @default - the function's own for all: databases then need CREATE_USERS "false" in environment, schemas share logins
   */
  readonly variables?: { readonly [name in RunVariable]?: string };

  /**
   * How often a run is started again that ended at its deadline, or that waited for another run's lock in vain.
   * @default - so often that one database or schema has an hour
   */
  readonly maxRuns?: number;

  /** How long S3 keeps what came of each database. @default Duration.days(90) */
  readonly resultsKept?: Duration;
}

/** Brings many databases of one server, or schemas of one database, up to date at every deployment, by a state machine. */
export class DbSetupFleet extends DbSetupFunction {
  readonly stateMachine: sfn.StateMachine;
  /** What came of each database. */
  readonly results: s3.Bucket;
  /** The deployment's part: other resources can depend on it. */
  readonly deployment: CustomResource;
  private readonly handler: lambda.IFunction;

  constructor(scope: Construct, id: string, props: DbSetupFleetProps) {
    super(scope, id, props);
    const { canaries = 1, databases, schemas } = props;
    const tenants = databases ?? schemas;
    if (!tenants || (databases && schemas)) throw new Error(`${id}: databases or schemas: give one of them.`);
    if ("names" in tenants && JSON.stringify(tenants.names).length > 150_000) {
      throw new Error(`${id}: so many names do not fit into a state, which holds 256 KB: write them into a file in S3.`);
    }
    if (props.createMissing && (schemas || "like" in tenants)) {
      const why = schemas ? "a run makes a schema that is missing" : "a pattern finds only databases that exist";
      throw new Error(`${id}: createMissing is for databases with names: ${why}.`);
    }
    // A version: an execution that is at work goes on with the code with which it began.
    this.handler = this.function.currentVersion;
    this.results = new s3.Bucket(this, "Results", {
      blockPublicAccess: s3.BlockPublicAccess.BLOCK_ALL,
      encryption: s3.BucketEncryption.S3_MANAGED,
      enforceSSL: true,
      lifecycleRules: [{ expiration: props.resultsKept ?? Duration.days(90) }],
    });

    const stateMachineName = Names.uniqueResourceName(this, { separator: "-", maxLength: 75 });
    const states = (resource: string, resourceName: string) =>
      Stack.of(this).formatArn({ service: "states", resource, resourceName, arnFormat: ArnFormat.COLON_RESOURCE_NAME });
    const machineArn = states("stateMachine", stateMachineName);

    // For a few seconds after a change, a new execution can still have the definition before it. Nothing would be done.
    const asked = new sfn.Choice(this, "Is this what was deployed");
    const isOutdated = sfn.Condition.and(
      sfn.Condition.isPresent("$.version"),
      sfn.Condition.not(sfn.Condition.stringEquals("$.version", this.handler.functionArn)),
    );
    const others = new tasks.CallAwsService(this, "Who is at work", {
      service: "sfn",
      action: "listExecutions",
      parameters: { StateMachineArn: sfn.JsonPath.stringAt("$$.StateMachine.Id"), StatusFilter: "RUNNING" },
      iamAction: "states:ListExecutions",
      iamResources: [machineArn],
      // They come newest first.
      resultSelector: {
        me: sfn.JsonPath.stringAt("$$.Execution.Id"),
        oldest: sfn.JsonPath.objectAt(
          "States.ArrayGetItem($.Executions, States.MathAdd(States.ArrayLength($.Executions), -1))",
        ),
      },
      resultPath: "$.turn",
    });
    others.addRetry(QUESTION);
    const turn = new sfn.Choice(this, "Is it my turn");
    const wait = new sfn.Wait(this, "Wait for the other run", { time: sfn.WaitTime.duration(Duration.seconds(10)) });
    const begin = new sfn.Pass(this, "Begin", {
      parameters: { after: "", failed: 0, total: 0, run: sfn.JsonPath.stringAt("$$.Execution.Name") },
    });
    const page = this.page(tenants, schemas !== undefined);
    const isFirst = new sfn.Choice(this, "Is it the first page");
    const canary = this.canary(props, tenants, canaries);
    const all = this.map(props, tenants);
    const count = new tasks.CallAwsService(this, "Count", {
      service: "sfn",
      action: "describeMapRun",
      parameters: { MapRunArn: sfn.JsonPath.stringAt("$.map.MapRunArn") },
      iamAction: "states:DescribeMapRun",
      iamResources: [states("mapRun", `${stateMachineName}/*`)],
      resultSelector: {
        failed: sfn.JsonPath.numberAt("$.ItemCounts.Failed"),
        total: sfn.JsonPath.numberAt("$.ItemCounts.Total"),
      },
      resultPath: "$.counts",
    });
    count.addRetry(QUESTION);
    const add = new sfn.Pass(this, "Add", {
      parameters: {
        after: sfn.JsonPath.stringAt("$.page.next"),
        run: sfn.JsonPath.stringAt("$.run"),
        failed: sfn.JsonPath.numberAt("States.MathAdd($.failed, $.counts.failed)"),
        total: sfn.JsonPath.numberAt("States.MathAdd($.total, $.counts.total)"),
      },
    });
    const isLast = new sfn.Choice(this, "Is it the last page");
    const verdict = new sfn.Choice(this, "Has any failed");

    isFirst.when(sfn.Condition.stringEquals("$.after", ""), canary.start).otherwise(all);
    canary.end.next(all);
    all.next(count).next(add).next(isLast);
    isLast.when(sfn.Condition.isNull("$.after"), verdict).otherwise(page);
    verdict
      .when(sfn.Condition.numberEquals("$.failed", 0), new sfn.Succeed(this, "Done"))
      .otherwise(this.firstFailures(schemas ? "schemas" : "databases"));
    page.next(isFirst);
    asked.when(isOutdated, new sfn.Fail(this, "Outdated", { error: "Outdated" })).otherwise(others.next(turn));
    turn
      .when(sfn.Condition.stringEqualsJsonPath("$.turn.oldest.ExecutionArn", "$.turn.me"), begin.next(page))
      .otherwise(wait.next(others));

    this.stateMachine = new sfn.StateMachine(this, "StateMachine", {
      stateMachineName,
      definitionBody: sfn.DefinitionBody.fromChainable(asked),
      comment: "Brings many databases of one server up to date",
    });
    // The versions before this one too: see above. And a right that is new takes a while to reach all of AWS.
    const anyVersion = `${this.function.functionArn}:*`;
    const mayInvoke = new iam.PolicyStatement({ actions: ["lambda:InvokeFunction"], resources: [anyVersion] });
    this.stateMachine.addToRolePolicy(mayInvoke);
    this.allowSecrets(props);
    this.deployment = this.atDeployment();
    this.deployment.node.addDependency(...this.needed);
  }

  /** With * for each {name}, as a right has it. */
  protected override prefixOf(props: DbSetupFleetProps): string {
    return (props.variables?.ROLE_PREFIX ?? super.prefixOf(props)).replaceAll("{name}", "*");
  }

  /** A page of names, and where the next one begins. */
  private page(tenants: Tenants, schemas: boolean): sfn.Pass | tasks.LambdaInvoke {
    if (!("like" in tenants)) {
      const names = "names" in tenants ? tenants.names : [];
      const result = sfn.Result.fromObject({ databases: names.map((name) => ({ name })), next: null });
      return new sfn.Pass(this, "List", { result, resultPath: "$.page" });
    }
    const list = new tasks.LambdaInvoke(this, "List", {
      lambdaFunction: this.handler,
      payload: sfn.TaskInput.fromObject({
        action: "databases",
        like: tenants.like,
        schemas,
        after: sfn.JsonPath.stringAt("$.after"),
        status: false,
      }),
      retryOnServiceExceptions: false,
      resultSelector: {
        databases: sfn.JsonPath.listAt("$.Payload.databases"),
        next: sfn.JsonPath.stringAt("$.Payload.next"),
      },
      resultPath: "$.page",
    });
    list.addRetry(retry(CAN_PASS, 6));
    return list;
  }

  /** The first few, one by one. The others are begun only if none of them fails. */
  private canary(props: DbSetupFleetProps, tenants: Tenants, canaries: number): { start: sfn.State; end: sfn.State & sfn.INextable } {
    const failed = new sfn.Fail(this, "Canary failed", {
      error: "CanaryFailed",
      causePath: "States.Format('No other one was begun. {}', $.error.Cause)",
    });
    if ("bucket" in tenants) {
      const { bucket, key } = tenants;
      const reader = new sfn.S3JsonItemReader({ bucket, key, maxItems: canaries });
      const map = new sfn.DistributedMap(this, "Canaries", {
        itemReader: reader,
        itemSelector: OF_EACH,
        maxConcurrency: 1,
        resultPath: sfn.JsonPath.DISCARD,
      });
      map.itemProcessor(this.migrate(props, "Canary: "));
      map.addCatch(failed, { resultPath: "$.error" });
      return { start: map, end: map };
    }
    const choose = new sfn.Pass(this, "Choose canaries", {
      parameters: { databases: sfn.JsonPath.listAt(`$.page.databases[0:${canaries}]`) },
      resultPath: "$.canary",
    });
    const map = new sfn.Map(this, "Canaries", {
      itemsPath: "$.canary.databases",
      itemSelector: OF_EACH,
      maxConcurrency: 1,
      resultPath: sfn.JsonPath.DISCARD,
    });
    map.itemProcessor(this.migrate(props, "Canary: "));
    map.addCatch(failed, { resultPath: "$.error" });
    choose.next(map);
    return { start: choose, end: map };
  }

  /** Those of a page. Each is an execution of its own, so that no failure stops another. */
  private map(props: DbSetupFleetProps, tenants: Tenants): sfn.DistributedMap {
    const map = new sfn.DistributedMap(this, "All", {
      ...("bucket" in tenants
        ? { itemReader: new sfn.S3JsonItemReader({ bucket: tenants.bucket, key: tenants.key }) }
        : { itemsPath: "$.page.databases" }),
      itemSelector: OF_EACH,
      maxConcurrency: props.maxConcurrency ?? 8,
      mapExecutionType: sfn.StateMachineType.STANDARD, // an express one ends after five minutes
      toleratedFailurePercentage: 100,
      resultWriterV2: new sfn.ResultWriterV2({ bucket: this.results, prefix: "maps" }),
      resultPath: "$.map",
    });
    return map.itemProcessor(this.migrate(props, ""));
  }

  /** One of them: runs until it is done, or until it fails with what cannot pass. */
  private migrate(props: DbSetupFleetProps, prefix: string): sfn.IChainable {
    const variables = Object.entries(props.variables ?? {}).map(([name, value]) => [name, withName(value)]);
    const run = new tasks.LambdaInvoke(this, `${prefix}Migrate`, {
      lambdaFunction: this.handler,
      payload: sfn.TaskInput.fromObject({
        action: "migrate",
        ...(props.createMissing && { create: true }),
        variables: {
          [props.schemas ? "DB_SCHEMA" : "DB_NAME"]: sfn.JsonPath.stringAt("$.name"),
          ...Object.fromEntries(variables),
        },
      }),
      retryOnServiceExceptions: false,
      resultSelector: {
        database: sfn.JsonPath.stringAt("$.Payload.database"),
        applied: sfn.JsonPath.listAt("$.Payload.applied"),
        warnings: sfn.JsonPath.listAt("$.Payload.warnings"),
      },
    });
    const minutes = (props.timeout ?? Duration.minutes(5)).toMinutes({ integral: false });
    run.addRetry(retry(ANOTHER_RUN_GOES_ON, props.maxRuns ?? Math.ceil(60 / minutes)));
    run.addRetry(retry(CAN_PASS, 6));

    const said = new sfn.Choice(this, `${prefix}Has db_setup said why`);
    const parse = new sfn.Pass(this, `${prefix}Read its answer`, {
      parameters: { answer: sfn.JsonPath.objectAt("States.StringToJson($.error.Cause)") },
      resultPath: "$.error",
    });
    const message = (id: string, path: string) =>
      new sfn.Pass(this, prefix + id, {
        parameters: {
          name: sfn.JsonPath.stringAt("$.name"),
          run: sfn.JsonPath.stringAt("$.run"),
          message: sfn.JsonPath.stringAt(path),
        },
      });
    const write = new tasks.CallAwsService(this, `${prefix}Write it down`, {
      service: "s3",
      action: "putObject",
      parameters: {
        Bucket: this.results.bucketName,
        Key: sfn.JsonPath.stringAt("States.Format('failures/{}/{}.json', $.run, $.name)"),
        Body: { name: sfn.JsonPath.stringAt("$.name"), message: sfn.JsonPath.stringAt("$.message") },
      },
      iamResources: [this.results.arnForObjects("failures/*")],
      resultPath: sfn.JsonPath.DISCARD,
    });
    write.addRetry(QUESTION);
    const fail = new sfn.Fail(this, `${prefix}Failed`, {
      error: "OneFailed",
      causePath: "States.Format('{}: {}', $.name, $.message)",
    });
    write.next(fail);
    parse.next(message("Its message", "$.error.answer.errorMessage")).next(write);
    said
      .when(sfn.Condition.stringMatches("$.error.Cause", '{"errorMessage":*'), parse)
      .otherwise(message("Lambda's message", "$.error.Cause").next(write));
    run.addCatch(said, { resultPath: "$.error" });
    return run;
  }

  /** Fails, and says how many failed, and the first of them with their messages. */
  private firstFailures(what: string): sfn.IChainable {
    const list = new tasks.CallAwsService(this, "First failures", {
      service: "s3",
      action: "listObjectsV2",
      parameters: {
        Bucket: this.results.bucketName,
        Prefix: sfn.JsonPath.format("failures/{}/", sfn.JsonPath.stringAt("$.run")),
        MaxKeys: 5,
      },
      iamAction: "s3:ListBucket",
      iamResources: [this.results.bucketArn],
      resultSelector: { keys: sfn.JsonPath.listAt("$.Contents[*].Key") },
      resultPath: "$.first",
    });
    const read = new tasks.CallAwsService(this, "Read", {
      service: "s3",
      action: "getObject",
      parameters: { Bucket: this.results.bucketName, Key: sfn.JsonPath.stringAt("$.key") },
      iamResources: [this.results.arnForObjects("failures/*")],
      resultSelector: { said: sfn.JsonPath.objectAt("States.StringToJson($.Body)") },
      outputPath: "$.said",
    });
    const messages = new sfn.Map(this, "Their messages", {
      itemsPath: "$.first.keys",
      itemSelector: { key: sfn.JsonPath.stringAt("$$.Map.Item.Value") },
      resultPath: "$.messages",
    }).itemProcessor(read);
    const fail = new sfn.Fail(this, "Some failed", {
      error: "SomeFailed",
      causePath:
        `States.Format('{} of {} ${what} failed. Start it again when their causes are gone. The first: {}', ` +
        "$.failed, $.total, States.JsonToString($.messages))",
    });
    return list.next(messages).next(fail);
  }

  /** The function may read and write the secrets that the runs' variables name. */
  private allowSecrets({ variables = {} }: DbSetupFleetProps): void {
    const { DB_USER_SECRET_NAME, DB_PROXY, DB_READER_SECRET_NAME } = variables;
    const names = [DB_USER_SECRET_NAME, DB_PROXY, DB_READER_SECRET_NAME].filter((name) => name !== undefined);
    const resources = names.map((name) =>
      name.startsWith("arn:")
        ? name.replaceAll("{name}", "*")
        : Stack.of(this).formatArn({
            service: "secretsmanager",
            resource: "secret",
            resourceName: `${name.replaceAll("{name}", "*")}-??????`,
            arnFormat: ArnFormat.COLON_RESOURCE_NAME,
          }),
    );
    const actions = ["secretsmanager:GetSecretValue", "secretsmanager:PutSecretValue"];
    if (resources.length) this.function.addToRolePolicy(new iam.PolicyStatement({ actions, resources }));
  }

  /** Starts an execution at each deployment that changes something, and waits for its end, for an hour at most. */
  private atDeployment(): CustomResource {
    const newFunction = (id: string, handler: string) =>
      new lambda.Function(this, id, {
        runtime: RUNTIME,
        handler: `index.${handler}`,
        code: lambda.Code.fromInline(AT_DEPLOYMENT),
        timeout: Duration.minutes(1),
        logGroup: new logs.LogGroup(this, `${id}Log`, { retention: logs.RetentionDays.ONE_YEAR }),
      });
    const onEventHandler = newFunction("Start", "start");
    const isCompleteHandler = newFunction("Look", "look");
    for (const each of [onEventHandler, isCompleteHandler]) this.stateMachine.grantStartExecution(each);
    this.stateMachine.grantExecution(isCompleteHandler, "states:DescribeExecution");
    const { serviceToken } = new cr.Provider(this, "Provider", {
      onEventHandler,
      isCompleteHandler,
      queryInterval: Duration.seconds(10),
      totalTimeout: Duration.hours(1),
    });
    return new CustomResource(this, "Deployment", {
      serviceToken,
      resourceType: "Custom::DbSetupFleet",
      properties: {
        StateMachineArn: this.stateMachine.stateMachineArn,
        Revision: this.stateMachine.stateMachineRevisionId,
        Version: this.function.currentVersion.functionArn,
      },
    });
  }
}

/** What each item's execution gets to know. */
const OF_EACH = {
  name: sfn.JsonPath.stringAt("$$.Map.Item.Value.name"),
  run: sfn.JsonPath.stringAt("$$.Execution.Name"),
};

// db_setup's deadline came, or another run has the database's lock: what is done stays done.
const ANOTHER_RUN_GOES_ON = ["StoppedError", "LockError", "Sandbox.Timedout"];
// A busy database, Secrets Manager or Lambda. A migration that failed would fail again, and is not retried.
const CAN_PASS = [
  ...["ConnectError", "UnreachableError", "Runtime.ExitError", "Lambda.Unknown", "Lambda.TooManyRequestsException"],
  ...["Lambda.ServiceException", "Lambda.AWSLambdaException", "Lambda.SdkClientException"],
  "Lambda.ClientExecutionTimeoutException",
];

// Another service, asked by the state machine itself. A new execution can be missing from the list for a moment.
const QUESTION: sfn.RetryProps = {
  interval: Duration.seconds(2),
  maxAttempts: 8,
  jitterStrategy: sfn.JitterType.FULL,
};

function retry(errors: string[], maxAttempts: number): sfn.RetryProps {
  const pauses = { interval: Duration.seconds(5), backoffRate: 2, maxDelay: Duration.minutes(1) };
  return { errors, maxAttempts, ...pauses, jitterStrategy: sfn.JitterType.FULL };
}

/** A variable's value with the name of the database or schema in place of each {name}. */
function withName(value: string): string {
  const parts = value.split("{name}");
  if (parts.length === 1) return value;
  const quoted = parts.map((part) => part.replace(/[\\'{}]/g, "\\$&"));
  return sfn.JsonPath.format(quoted.join("{}"), ...parts.slice(1).map(() => sfn.JsonPath.stringAt("$.name")));
}

const AT_DEPLOYMENT = `
import json

import boto3


def start(event, context):
    """Start an execution, once for each request of CloudFormation."""
    if event["RequestType"] == "Delete":
        return {}
    execution = begin(boto3.client("stepfunctions"), event, event["RequestId"])
    return {"PhysicalResourceId": "fleet", "Data": {"Execution": execution}}


def begin(states, event, name):
    properties = event["ResourceProperties"]
    asked = json.dumps({"version": properties["Version"]})
    started = states.start_execution(
        stateMachineArn=properties["StateMachineArn"], name=name, input=asked
    )
    return started["executionArn"]


def look(event, context):
    """Whether it has ended; raises what it says where it failed."""
    if event["RequestType"] == "Delete":
        return {"IsComplete": True}
    states = boto3.client("stepfunctions")
    execution = event["Data"]["Execution"]
    try:
        found = states.describe_execution(executionArn=execution)
        if found.get("error") == "Outdated":  # started again, once
            execution += "-again"
            begin(states, event, event["RequestId"] + "-again")
            return {"IsComplete": False}
    except states.exceptions.ExecutionDoesNotExist:  # everywhere yet
        return {"IsComplete": False}
    except states.exceptions.ExecutionAlreadyExists:  # and has ended
        found = states.describe_execution(executionArn=execution)
    if found["status"] == "RUNNING":
        return {"IsComplete": False}
    if found["status"] != "SUCCEEDED":
        said = found.get("cause") or found.get("error") or "it has no cause"
        raise RuntimeError(f"{found['status']}: {said[:1800]} See {execution}")
    return {"IsComplete": True}
`;
