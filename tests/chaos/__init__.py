"""Tests that kill, freeze, cut and restart: `make chaos`. They take long, and are not part of `make test`."""
