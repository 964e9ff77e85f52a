"""Tests that kill, freeze, cut and restart: `make chaos`. They take long, and are no part of `make test`."""
