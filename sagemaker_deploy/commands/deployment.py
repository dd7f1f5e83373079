"""`plan`, `deploy`, `update` and `delete`: create, change and remove a deployment."""

import click

from sagemaker_deploy import account
from sagemaker_deploy.aws import Aws
from sagemaker_deploy.commands import options
from sagemaker_deploy.commands.output import Progress, plan_as_data, print_json, print_plan
from sagemaker_deploy.commands.why import explained
from sagemaker_deploy.config import Config
from sagemaker_deploy.errors import EndpointFailed, NotFound
from sagemaker_deploy.execute import Executor
from sagemaker_deploy.plan import delete as deletion
from sagemaker_deploy.plan import deploy as deployment
from sagemaker_deploy.plan.requests import component_name
from sagemaker_deploy.plan.steps import Plan


@click.command()
@options.config_options
@click.option("--policies", is_flag=True, help="Print the IAM documents that it needs.")
@click.option("--offline", is_flag=True, help="Ask AWS nothing: what the file alone shows.")
@options.as_json
def plan(config: Config, policies: bool, offline: bool, as_json: bool) -> None:
    """Show the steps of `deploy`. Only reads; changes nothing.

    Lists the resources to create, their costs, whether the model fits the instance, and, with
    --policies, the least permissions that the execution role and the deployer need. With --offline
    it needs no credentials, and takes everything for new.
    """
    if offline:
        planned = deployment.plan(config, account.without_account(config))
    else:
        planned = _planned(config, options.aws_of(config))
    if as_json:
        print_json(plan_as_data(planned))
        return
    print_plan(planned)
    if policies:
        print_json(planned.policies)


@click.command()
@options.config_options
@options.yes
@options.as_json
@options.poll
def deploy(config: Config, yes: bool, as_json: bool, poll: float) -> None:
    """Create the deployment, or update it to the configuration.

    Prints the plan, asks for confirmation, executes it and waits. If a step fails, the resources
    of this run are removed, and the error names those that could not be. Running it again without
    a change does nothing.
    """
    _apply(config, options.aws_of(config), yes, as_json, poll)


@click.command()
@options.config_options
@options.yes
@options.as_json
@options.poll
def update(config: Config, yes: bool, as_json: bool, poll: float) -> None:
    """Update an existing endpoint to a new version, by `update:` in the file.

    Strategies: all_at_once, canary, linear (blue/green) and rolling; `update.alarms` names
    CloudWatch alarms that roll it back. Unlike `deploy` it never creates an endpoint.
    """
    aws = options.aws_of(config)
    if account.describe_endpoint(aws, config.name) is None:
        raise NotFound(f"endpoint {config.name} does not exist", hint="use `deploy`")
    _apply(config, aws, yes, as_json, poll)


@click.command()
@options.target_options
@click.option("--bucket", help="Bucket whose uploaded archives go too (else the file's).")
@click.option("--dry-run", is_flag=True, help="Only show what would be deleted.")
@options.yes
@options.as_json
@options.poll
def delete(
    name: str,
    aws: Aws,
    config: Config | None,
    bucket: str | None,
    dry_run: bool,
    yes: bool,
    as_json: bool,
    poll: float,
) -> None:
    """Delete a deployment's endpoint, components, configs, models, scaling, alarms and archives.

    Finds them by the name and the tag `sagemaker-deploy`, and the archives by what the models and
    adapters refer to. Keeps logs and responses on S3.
    """
    deployed = account.find_deletable(aws, name, bucket or _bucket(config, name))
    planned = deletion.plan(deployed)
    if as_json and dry_run:
        print_json(plan_as_data(planned))
        return
    if not as_json:
        print_plan(planned)
    if dry_run or not planned.steps:
        return
    if not yes:
        click.confirm("Delete all of this?", abort=True, err=True)
    Executor(aws, Progress(), poll).apply(planned)
    if as_json:
        print_json({"deleted": [step.resource for step in planned.steps]})


def _bucket(config: Config | None, name: str) -> str | None:
    return config.bucket if config and config.name == name else None


def _planned(config: Config, aws: Aws) -> Plan:
    return deployment.plan(config, account.gather(aws, config))


def _apply(config: Config, aws: Aws, yes: bool, as_json: bool, poll_s: float) -> None:
    planned = _planned(config, aws)
    if not as_json:
        print_plan(planned)
    if planned.steps and not yes:
        click.confirm("Go ahead?", abort=True, err=True)
    try:
        Executor(aws, Progress(), poll_s).apply(planned)
    except EndpointFailed as error:
        raise explained(aws, config, error) from error
    if as_json:
        print_json({"endpoint": config.name, "steps": len(planned.steps)})
    else:
        click.echo(f"{config.name} is in service; try: {first_call(config)}")


def first_call(config: Config) -> str:
    """Return the command that calls a deployment of this kind."""
    command = f"sagemaker_deploy {'async' if config.asynchronous else 'invoke'} {config.name}"
    if config.region:
        command += f" --region {config.region}"
    if config.component:
        command += f" --component {component_name(config)}"
    if config.multi_model:
        command += " --target-model <archive below model.data>"
    return f"{command} Hello"
