"""Mutants: small changes to db_setup that a test must notice. `make mutants` tries them."""
