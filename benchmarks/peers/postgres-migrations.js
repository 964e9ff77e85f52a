// It has no command of its own that applies a folder: this is its README's example.
const { Client } = require("pg");
const { migrate } = require("postgres-migrations");

async function main() {
  const client = new Client();
  await client.connect();
  try {
    await migrate({ client }, process.argv[2]);
  } finally {
    await client.end();
  }
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
