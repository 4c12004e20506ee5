"""The registry: bases, nodes, versions and lineage over a database and a blob store; no torch."""
