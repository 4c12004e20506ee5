"""The command `python -m loratree_cli`, the same as `loratree`."""

from loratree_cli.main import main

if __name__ == "__main__":
    main()
