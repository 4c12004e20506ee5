"""The composer: reads chains of adapters, merges, stacks and flattens them onto a base."""
