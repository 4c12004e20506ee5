"""A chain as one PEFT adapter."""
