"""`python -m sagemaker_deploy`, also installed as `sagemaker-deploy`."""

from sagemaker_deploy.commands.main import main

if __name__ == "__main__":
    main()
