"""What the tests and the demo are based on: a real PostgreSQL server, and the databases and roles on it."""
