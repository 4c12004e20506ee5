"""The demo: a small tree of LoRA adapters grown from nothing, and what each level adds."""
