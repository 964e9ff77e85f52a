"""The whole chain without an account: CDK's trigger provider → Lambda's runtime client → the handler → PostgreSQL."""
