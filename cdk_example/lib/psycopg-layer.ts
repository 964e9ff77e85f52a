import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync, readFileSync } from "node:fs";
import * as path from "node:path";
import { AssetHashType, DockerImage } from "aws-cdk-lib";
import * as lambda from "aws-cdk-lib/aws-lambda";
import { Construct } from "constructs";

export interface PsycopgLayerProps {
  /**
   * What the function runs on.
   *
   * @default lambda.Architecture.X86_64
   */
  readonly architecture?: lambda.Architecture;
}

/**
 * What the function and its layer are made for; the only place to change. `layer/requirements.txt` holds the hashes of
 * psycopg2 for Python 3.13 and 3.14: a later one needs its own there.
 */
export const RUNTIME = lambda.Runtime.PYTHON_3_13;

const FOLDER = path.join(__dirname, "..", "layer");
const REQUIREMENTS = path.join(FOLDER, "requirements.txt");
const WHEELS = path.join(FOLDER, "wheels");

/** psycopg2 for the runtime, put together by pip on any machine, without Docker and without a compiler. */
export class PsycopgLayer extends lambda.LayerVersion {
  constructor(scope: Construct, id: string, props: PsycopgLayerProps = {}) {
    const architecture = props.architecture ?? lambda.Architecture.X86_64;
    super(scope, id, {
      description: "psycopg2",
      compatibleArchitectures: [architecture],
      compatibleRuntimes: [RUNTIME],
      code: lambda.Code.fromAsset(FOLDER, {
        // What is asked for, not what came: another version of pip, which writes other notes next to the package, must
        // not make another layer, and so another run.
        assetHashType: AssetHashType.CUSTOM,
        assetHash: hashOf(architecture),
        bundling: {
          image: DockerImage.fromRegistry("not-used"),
          local: {
            tryBundle(output) {
              build(output, architecture);
              return true;
            },
          },
        },
      }),
    });
  }
}

/**
 * Put the layer's files into `output`, the same whichever Python and pip are there; throws with what to do where pip
 * does not work.
 */
export function build(output: string, architecture: lambda.Architecture, runtime = RUNTIME): void {
  const offline = existsSync(WHEELS) ? ["--no-index", "--find-links", WHEELS] : [];
  // Compiled files hold the time of their sources: with them no two builds are equal.
  pip("install", architecture, runtime, ["--no-compile", "--target", path.join(output, "python"), ...offline]);
}

/** Fetch what `build` needs, which then does without a network. */
export function download(architecture: lambda.Architecture): void {
  pip("download", architecture, RUNTIME, ["--dest", WHEELS]);
}

function versionOf(runtime: lambda.Runtime): string {
  return runtime.name.replace("python", "");
}

function pip(verb: string, architecture: lambda.Architecture, runtime: lambda.Runtime, options: string[]): void {
  const python = process.env.PYTHON ?? (process.platform === "win32" ? "python" : "python3");
  const platform = architecture === lambda.Architecture.ARM_64 ? "manylinux_2_28_aarch64" : "manylinux2014_x86_64";
  const version = versionOf(runtime);
  const wanted = ["--platform", platform, "--implementation", "cp", "--python-version", version, "--only-binary=:all:"];
  // The hashes say what comes. Pip 23 would also ask for the Python that it runs on itself to be new enough for it.
  const pinned = ["--require-hashes", "--no-deps", "--ignore-requires-python", "--requirement", REQUIREMENTS];
  const quiet = ["--quiet", "--disable-pip-version-check"];
  run(
    [python, "-m", "pip", "--version"],
    `the psycopg2 layer needs pip, and "${python} -m pip" does not work. Install it, name another Python in PYTHON, ` +
      "or pass a layer of your own to DbSetup.",
  );
  run(
    [python, "-m", "pip", verb, ...wanted, ...pinned, ...quiet, ...options],
    'pip could not fetch psycopg2 for the layer. Without a network, run "npm run wheels" once with one.',
  );
}

function run([program, ...words]: [string, ...string[]], problem: string): void {
  try {
    execFileSync(program, words, { stdio: ["ignore", "ignore", "pipe"], encoding: "utf8" });
  } catch (error) {
    const said = (error as { stderr?: string }).stderr || (error as Error).message;
    throw new Error(`${problem}\n${said.trim()}`);
  }
}

function hashOf(architecture: lambda.Architecture): string {
  // Line ends do not count: git may write others on Windows.
  const requirements = readFileSync(REQUIREMENTS, "utf8").replace(/\r\n/g, "\n");
  return createHash("sha256").update(`${architecture.name} ${versionOf(RUNTIME)}\n${requirements}`).digest("hex");
}
