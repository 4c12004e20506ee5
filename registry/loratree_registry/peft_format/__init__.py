"""The files of a PEFT adapter, read and checked against a base."""
