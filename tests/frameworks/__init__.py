"""The pages of docs/frameworks/, with the tools that they are for: `make example`."""
