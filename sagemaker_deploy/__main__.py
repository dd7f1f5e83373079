"""`python -m sagemaker_deploy`, also installed as `sagemaker-deploy`."""

import sys


def main() -> None:
    """Run the command line, or print how to install a missing dependency."""
    try:
        from sagemaker_deploy.commands.main import main as commands
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("sagemaker_deploy"):
            raise
        print(f"error: {error.name} is not installed", file=sys.stderr)
        print("  hint: pip install -e '.[deploy]', or `make local`", file=sys.stderr)
        sys.exit(3)
    commands()


if __name__ == "__main__":
    main()
