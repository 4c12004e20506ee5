"""What the server that forks the children imports, once: it has one thread, and holds nothing open."""

from tests.forked import preload

preload()
