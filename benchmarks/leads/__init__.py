"""Prototypes of what would make the cold start shorter: each a handler of Lambda's that changes ours from outside."""
