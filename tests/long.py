"""What takes long runs in .ci/run, which sets LORATREE_TEST_LONG=1, and not in `make test`."""

import os

LONG = os.environ.get("LORATREE_TEST_LONG") == "1"
