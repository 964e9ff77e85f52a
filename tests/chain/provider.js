// Runs CDK's own trigger provider, as it is uploaded: one event of CloudFormation per line comes in, one answer goes
// out. Called as: node provider.js FOLDER-OF-THE-PROVIDER
const path = require("node:path");
const readline = require("node:readline");

// What it logs goes the other way: standard output is for the answers.
console.log = console.error;
const provider = require(path.join(process.argv[2], "__entrypoint__.js"));
provider.external.sendHttpRequest = async (_options, body) => process.stdout.write(`${body}\n`);

(async () => {
  for await (const line of readline.createInterface({ input: process.stdin })) {
    await provider.handler(JSON.parse(line), {});
  }
})();
