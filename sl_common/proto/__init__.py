"""Generated from protos/sl/v1/split.proto by `make proto`; a test compares the two."""
