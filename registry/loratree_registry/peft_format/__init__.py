"""What the files of a PEFT adapter say, checked against a base."""
