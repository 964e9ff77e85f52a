"""What the tests and the demo stand on: a real PostgreSQL server, and the databases and roles on it."""
