"""Attacks on the boundary of the limited users.

They take half as long as all other tests, so they have a command of their own: `make attacks`.
"""
