"""A fleet without an account: the synthesised state machine, an interpreter of its language, the real handler."""
