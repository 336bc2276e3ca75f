"""`python -m snapshot_assets`: the command line."""

from snapshot_assets.cli import main

if __name__ == "__main__":
    main()
