"""`template`: CloudFormation or Terraform, for those who deploy with it."""

import click
import yaml

from sagemaker_deploy.commands import options
from sagemaker_deploy.commands.output import print_json
from sagemaker_deploy.config import Config
from sagemaker_deploy.templates import cloudformation, pipeline, terraform


def _pipeline(ctx: click.Context, _option: click.Parameter, is_set: bool) -> None:
    """Print the pipeline's template and exit; it needs no configuration."""
    if is_set:
        _print(pipeline.template(), as_json=False)
        ctx.exit()


@click.command()
@options.config_options
@click.option(
    "--pipeline",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_pipeline,
    help="What buildspec.yml needs: ECR repository, CodeBuild project, role, bucket.",
)
@click.option("--terraform", "for_terraform", is_flag=True, help="Terraform's JSON syntax.")
@options.as_json
def template(config: Config, for_terraform: bool, as_json: bool) -> None:
    """Print a CloudFormation template of the deployment, or Terraform. Nothing is called.

    \b
      sagemaker_deploy template -f deploy.yaml > endpoint.yaml
      sagemaker_deploy template -f deploy.yaml --terraform > endpoint.tf.json
      sagemaker_deploy template --pipeline > pipeline.yaml

    It has the same parameters as `deploy`; model.data must be on S3.
    """
    if for_terraform:
        print_json(terraform.document(config))
        return
    _print(cloudformation.endpoint(config), as_json=as_json)


def _print(document: dict[str, object], *, as_json: bool) -> None:
    if as_json:
        print_json(document)
    else:
        click.echo(yaml.safe_dump(document, sort_keys=False, width=100), nl=False)
