"""`python -m loratree_cli` is `loratree`."""

from loratree_cli.main import main

if __name__ == "__main__":
    main()
