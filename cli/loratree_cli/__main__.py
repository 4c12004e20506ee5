"""The command `python -m loratree_cli`, the same as `loratree`."""

from loratree_cli.entry import start

if __name__ == "__main__":
    start()
