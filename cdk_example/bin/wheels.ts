/** Fetches psycopg2 into layer/wheels, so that no synthesis needs a network any more. */
import { Architecture } from "aws-cdk-lib/aws-lambda";
import { download } from "../lib/psycopg-layer";

download(Architecture.X86_64);
download(Architecture.ARM_64);
