"""`python -m launch` is the `unlearn` command."""

from launch.cli import main

if __name__ == "__main__":
    main()
