"""Causes as AWS words them in the reason of a failure; the more specific one comes first."""

import re

from sagemaker_deploy.diagnosis.rule import rule

IN_REASON = (
    rule(
        "quota",
        r"account-level service limit '(?P<quota>[^']+)' is (?P<limit>\d+)|ResourceLimitExceeded",
        "a quota of the account is used up: {quota}",
        "ask for more at Service Quotas > Amazon SageMaker, delete unused endpoints, or "
        "take another instance type",
    ),
    rule(
        "capacity",
        r"InsufficientInstanceCapacity|CapacityError|EC2InsufficientCapacity|Unable to provision "
        r"requested ML compute capacity|temporarily unavailable in supported availability zones|"
        r"InsufficientCapacity",
        "AWS has no free instance of this type in the region's zones at the moment",
        "try again later, name several types (instance_types), more subnets, or another region",
    ),
    rule(
        "component capacity",
        r"(?:not have|no(?:t)?) enough (?:hardware |compute )?resources|insufficient (?:hardware |"
        r"compute )?resources|no instances? .*to place",
        "the endpoint's instances have no room for another copy of the component",
        "raise scaling.max or instance_count, or lower component.gpus, cpus or memory_mb",
    ),
    rule(
        "manifest",
        r"Unsupported manifest media type (?P<kind>\S+)",
        "the image in ECR is of a kind that SageMaker does not take: {kind}",
        "build it with `docker buildx build --platform linux/amd64 --provenance=false --output "
        "type=docker`, and push it again",
    ),
    rule(
        "image size",
        r"Image size (?P<size>\d+) is greater than supported size (?P<limit>\d+)",
        "the image has {size} bytes, and a serverless endpoint takes {limit}",
        "take the image for CPUs, or an endpoint with instances",
    ),
    rule(
        "image pull",
        r"images included in the model for the production variant .* exist|Requested image .* not "
        r"found|does not have permission to access the image|CannotPullContainer|repository .* "
        r"does "
        r"not exist",
        "SageMaker cannot pull the image: it is not there, or the role may not read it",
        "check the tag with `plan`; give the role the execution policy that `plan --policies` "
        "prints; of another account, its repository policy; in a VPC, endpoints for ECR and S3",
    ),
    rule(
        "start command",
        r"CannotStartContainerError",
        "the container does not start with `docker run <image> serve`",
        "run that command on your machine: the image must take the word serve and be of the "
        "instance's architecture",
    ),
    rule(
        "archive",
        r"Failed to extract model data archive|valid tar\.gz archive|unable to extract",
        "the model's archive is no .tar.gz that SageMaker can unpack",
        "pack it with `tar czf`, without links that lead out of it; or give the s3:// prefix "
        "of the "
        "unpacked files",
    ),
    rule(
        "archive size",
        r"model data archive is too large|model data .*exceeds",
        "the model's archive is too large for the instance's disk",
        "set volume_gb, take a larger instance, or give the s3:// prefix of the unpacked files",
    ),
    rule(
        "download time-out",
        r"(?:timed? ?out|did not (?:complete|finish)).*(?:model data|download)|"
        r"download.*timed? ?out",
        "the model's files were not downloaded within download_timeout_s",
        "raise download_timeout_s (3600 at most), or give the s3:// prefix of the unpacked "
        "files in "
        "the same region",
    ),
    rule(
        "model data",
        r'Failed to download model data.*?URL: ?"?(?P<url>[^"\s]+)|Could not find model data at '
        r"(?P<at>\S+)|ensure that there is an object located at the URL",
        "the model's files cannot be read from S3",
        "check the URL and its region; give the role s3:GetObject and s3:ListBucket on it (`plan "
        "--policies`), and kms:Decrypt if the bucket is encrypted with a key of your own",
    ),
    rule(
        "role",
        r"Could not assume role|allows principal 'sagemaker\.amazonaws\.com' to assume",
        "SageMaker may not assume the execution role",
        "give the role the trust policy that `plan --policies` prints",
    ),
    rule(
        "key",
        r"KMS(?:\.| key|AccessDenied).*|kms:CreateGrant",
        "the KMS key may not be used",
        "allow the role and the deployer to use kms_key, in the key's own policy, too",
    ),
    rule(
        "addresses",
        r"(?:free|available) (?:IP )?addresses|InsufficientFreeAddresses|network interface.*limit",
        "the subnets have no free addresses for the instances",
        "name more or larger subnets under network.subnets",
    ),
    rule(
        "permission",
        r"is not authorized to perform:? (?P<action>[\w:-]+)|AccessDenied",
        "the role may not do what the endpoint needs: {action}",
        "give the role the execution policy that `plan --policies` prints",
    ),
    rule(
        "alarm",
        r"alarm(?:s|\(s\))?\b.*(?:roll(?:ed)?.?back|triggered|in alarm)|roll(?:ed)?.?back.*\balarm",
        "an alarm went off during the update, and SageMaker kept the old version",
        "look at the alarm's metric and at the new version's log, then update again",
    ),
    rule(
        "zone",
        r"not (?:available|supported) in (?:this|the) (?:availability zone|region)",
        "this instance type is not offered in the region or zone",
        "take another type or region, or subnets in other zones",
    ),
    rule(
        "service",
        r"Request to service failed|InternalServerError|internal error|contact customer support",
        "the service failed, or the image is built for another architecture and wrote no log",
        "check the image's architecture (`plan` does), then try again; if it stays, ask AWS "
        "support",
    ),
)
PING_FAILED = re.compile(r"did not pass the ping health check|health check", re.IGNORECASE)
