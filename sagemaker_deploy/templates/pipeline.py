"""The CloudFormation template of buildspec.yml's resources: repository, role, project, bucket."""

import json
from typing import Any

from sagemaker_deploy.plan.permissions.documents import allow, document
from sagemaker_deploy.templates.cloudformation import VERSION, attribute, resource

Json = dict[str, Any]
# CodeBuild's environment for each platform: its type and image.
ENVIRONMENTS = {
    "linux/amd64": ("LINUX_CONTAINER", "aws/codebuild/amazonlinux-x86_64-standard:5.0"),
    "linux/arm64": ("ARM_CONTAINER", "aws/codebuild/amazonlinux-aarch64-standard:3.0"),
}
KEEP_UNTAGGED_DAYS = 14
KEEP_CACHE_DAYS = 30
# Variables that the project omits if their parameter is empty.
OPTIONAL = {
    "BASE_IMAGE": "BaseImage",
    "TORCH_INDEX": "TorchIndex",
    "STAGING_CONFIG": "StagingConfig",
}
BASE_ARM64 = "BaseImageArm64"  # a base image may be of one platform only


def template() -> Json:
    """Build the template, for `aws cloudformation deploy --capabilities CAPABILITY_IAM`."""
    return {
        "AWSTemplateFormatVersion": VERSION,
        "Description": "Builds, tests and pushes the image as buildspec.yml says",
        "Parameters": _parameters(),
        "Conditions": {f"Has{name}": _is_set(name) for name in (*OPTIONAL.values(), BASE_ARM64)}
        | {"IsForGraviton": {"Fn::Equals": [{"Ref": "Graviton"}, "yes"]}},
        "Resources": {
            "Repository": resource("ECR::Repository", _repository()),
            "Bucket": resource("S3::Bucket", _bucket()),
            "BuildRole": resource("IAM::Role", _role()),
            "Build": resource("CodeBuild::Project", _project("linux/amd64")),
            "BuildArm64": resource("CodeBuild::Project", _project("linux/arm64"))
            | {"Condition": "IsForGraviton"},
        },
        "Outputs": {
            "RepositoryUri": {"Value": attribute("Repository", "RepositoryUri")},
            "ProjectName": {"Value": {"Ref": "Build"}},
        },
    }


def _parameters() -> Json:
    return {
        "RepositoryName": {"Type": "String", "Default": "llm"},
        "SourceType": {
            "Type": "String",
            "Default": "GITHUB",
            "AllowedValues": ["GITHUB", "CODECOMMIT", "BITBUCKET", "GITLAB", "S3"],
        },
        "SourceLocation": {
            "Type": "String",
            "Description": "URL of the git repository, or bucket/key of a source archive",
        },
        "Variant": {"Type": "String", "Default": "cpu", "AllowedValues": ["cpu", "cuda"]},
        "Graviton": {
            "Type": "String",
            "Default": "no",
            "AllowedValues": ["yes", "no"],
            "Description": "yes: a second project builds the image for arm64, without staging",
        },
        "BaseImage": {"Type": "String", "Default": "", "Description": "for a CUDA image"},
        "BaseImageArm64": {
            "Type": "String",
            "Default": "",
            "Description": "for a CUDA image of Graviton=yes",
        },
        "TorchIndex": {
            "Type": "String",
            "Default": "",
            "Description": "where pip finds the build of torch for CPUs",
        },
        "StagingConfig": {
            "Type": "String",
            "Default": "",
            "Description": "file of sagemaker_deploy; give BuildRole its `plan --policies` too",
        },
    }


def _repository() -> Json:
    rule = {
        "rulePriority": 1,
        "description": "untagged images go",
        "selection": {
            "tagStatus": "untagged",
            "countType": "sinceImagePushed",
            "countUnit": "days",
            "countNumber": KEEP_UNTAGGED_DAYS,
        },
        "action": {"type": "expire"},
    }
    return {
        "RepositoryName": {"Ref": "RepositoryName"},
        "ImageScanningConfiguration": {"ScanOnPush": True},
        "LifecyclePolicy": {"LifecyclePolicyText": json.dumps({"rules": [rule]})},
    }


def _bucket() -> Json:
    rule = {
        "Id": "cache",
        "Status": "Enabled",
        "Prefix": "cache/",
        "ExpirationInDays": KEEP_CACHE_DAYS,
    }
    return {
        "PublicAccessBlockConfiguration": {
            "BlockPublicAcls": True,
            "BlockPublicPolicy": True,
            "IgnorePublicAcls": True,
            "RestrictPublicBuckets": True,
        },
        "LifecycleConfiguration": {"Rules": [rule]},
    }


def _role() -> Json:
    trust = {
        "Effect": "Allow",
        "Principal": {"Service": "codebuild.amazonaws.com"},
        "Action": "sts:AssumeRole",
    }
    return {
        "AssumeRolePolicyDocument": document([trust]),
        "Policies": [
            {
                "PolicyName": "build",
                "PolicyDocument": document(_statements()),
            }
        ],
    }


def _statements() -> list[Json]:
    own = "arn:${AWS::Partition}:%s:${AWS::Region}:${AWS::AccountId}:%s"
    project = "/aws/codebuild/${AWS::StackName}-*"
    logs = _sub(own % ("logs", f"log-group:{project}"))
    reports = _sub(own % ("codebuild", "report-group/${AWS::StackName}-*"))
    bucket = attribute("Bucket", "Arn")
    return [
        allow(["ecr:GetAuthorizationToken", "inspector-scan:ScanSbom"], "*"),
        allow(
            [
                "ecr:BatchCheckLayerAvailability",
                "ecr:BatchGetImage",
                "ecr:CompleteLayerUpload",
                "ecr:DescribeImages",
                "ecr:GetDownloadUrlForLayer",
                "ecr:InitiateLayerUpload",
                "ecr:PutImage",
                "ecr:UploadLayerPart",
            ],
            attribute("Repository", "Arn"),
        ),
        allow(["logs:CreateLogGroup", "logs:CreateLogStream", "logs:PutLogEvents"], logs),
        allow(
            [
                "codebuild:CreateReportGroup",
                "codebuild:CreateReport",
                "codebuild:UpdateReport",
                "codebuild:BatchPutTestCases",
                "codebuild:BatchPutCodeCoverages",
            ],
            reports,
        ),
        allow(["s3:GetObject", "s3:PutObject"], {"Fn::Sub": "${Bucket.Arn}/*"}),
        allow(["s3:GetBucketAcl", "s3:GetBucketLocation", "s3:ListBucket"], bucket),
    ]


def _project(platform: str) -> Json:
    kind, image = ENVIRONMENTS[platform]
    is_arm = platform == "linux/arm64"
    cache = "${Bucket}/cache/arm64" if is_arm else "${Bucket}/cache"
    variables = [
        {"Name": "REPOSITORY_URI", "Value": attribute("Repository", "RepositoryUri")},
        {"Name": "VARIANT", "Value": {"Ref": "Variant"}},
        {"Name": "PLATFORM", "Value": platform},
    ]
    variables += [
        _optional(variable, BASE_ARM64 if is_arm and variable == "BASE_IMAGE" else name)
        for variable, name in OPTIONAL.items()
        if not (is_arm and variable == "STAGING_CONFIG")
    ]
    return {
        "Name": _sub("${AWS::StackName}-image" + ("-arm64" if is_arm else "")),
        "ServiceRole": attribute("BuildRole", "Arn"),
        "TimeoutInMinutes": 120,
        "Source": {
            "Type": {"Ref": "SourceType"},
            "Location": {"Ref": "SourceLocation"},
            "BuildSpec": "buildspec.yml",
        },
        "Environment": {
            "Type": kind,
            "ComputeType": "BUILD_GENERAL1_LARGE",
            "Image": image,
            "PrivilegedMode": True,  # docker build needs it
            "EnvironmentVariables": variables,
        },
        "Artifacts": {
            "Type": "S3",
            "Location": {"Ref": "Bucket"},
            "Path": "artifacts",
            "NamespaceType": "BUILD_ID",
            "Packaging": "NONE",
        },
        "Cache": {"Type": "S3", "Location": _sub(cache)},
    }


def _is_set(parameter: str) -> Json:
    return {"Fn::Not": [{"Fn::Equals": [{"Ref": parameter}, ""]}]}


def _optional(variable: str, parameter: str) -> Json:
    variable_entry = {"Name": variable, "Value": {"Ref": parameter}}
    return {"Fn::If": [f"Has{parameter}", variable_entry, {"Ref": "AWS::NoValue"}]}


def _sub(text: str) -> Json:
    return {"Fn::Sub": text}
