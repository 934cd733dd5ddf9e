"""`python -m agent` is the `marram` command."""

from agent.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
