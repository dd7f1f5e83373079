"""Configurations that between them use everything that a deployment can have."""

from typing import Any

BASE: dict[str, Any] = {
    "name": "chat",
    "image": "000000000000.dkr.ecr.us-east-1.amazonaws.com/llm:1",
    "role": "arn:aws:iam::000000000000:role/SageMaker",
    "model": {"id": "org/model"},
    "instance_type": "ml.g5.2xlarge",
    "cuda": "12.4",
}
COMPONENT = {"component": {"memory_mb": 8192}}
SCHEDULED: dict[str, Any] = {
    "max": 4,
    "target_concurrency": 8,
    "timezone": "Europe/Berlin",
    "schedules": {
        "day": {"at": "cron(0 7 ? * MON-FRI *)", "min": 2, "max": 8},
        "night": {"at": "cron(0 20 ? * MON-FRI *)", "max": 1},
    },
}
CASES: dict[str, dict[str, Any]] = {
    "real-time": {},
    "s3 prefix": {"model": {"data": "s3://models/chat/"}},
    "archive": {"model": {"data": "s3://models/chat/model.tar.gz"}},
    "draft model": {"model": {"id": "a/b", "additional": {"draft": "s3://models/draft"}}},
    "serverless": {"serverless": {"memory_mb": 4096}, "instance_type": None, "cuda": None},
    "asynchronous": {"asynchronous": {"output": "s3://out/x", "max_concurrent_per_instance": 4}},
    "component": COMPONENT,
    "scaled": {"scaling": {"max": 4, "target_concurrency": 8}},
    "scaled to zero": COMPONENT | {"scaling": {"min": 0, "max": 4, "target_concurrency": 8}},
    "async to zero": {
        "asynchronous": {"output": "s3://out/x"},
        "scaling": {"min": 0, "max": 2, "target_concurrency": 5},
    },
    "multi-model": {"multi_model": True, "model": {"data": "s3://models/many/"}},
    "pools": {"instance_type": None, "instance_types": ["ml.g5.xlarge", "ml.g6.xlarge"]},
    "prefix aware": {"routing": "prefix_aware"},
    "vpc": {
        "network": {
            "subnets": ["subnet-0123456789abcdef0"],
            "security_groups": ["sg-0123456789abcdef0"],
        }
    },
    "captured": {
        "capture": {"destination": "s3://seen/x", "percent": 10},
        "kms_key": "arn:aws:kms:us-east-1:000000000000:key/01234567-89ab-cdef-0123-456789abcdef",
    },
    "secret": {"secrets": {"HF_TOKEN": "hub"}},
    "scheduled": {"scaling": SCHEDULED},
    "scheduled component": COMPONENT
    | {
        "scaling": SCHEDULED
        | {"schedules": {"night": {"at": "cron(0 20 * * ? *)", "min": 0, "max": 0}}}
    },
    "idle release": {"component": {"memory_mb": 8192, "scale_in": {"cooldown_minutes": 30}}},
    "watched": {
        "monitoring": {"topic": "arn:aws:sns:us-east-1:000000000000:alarms", "latency_s": 20},
        "update": {"alarms": ["others"]},
    },
    "measured": {"metrics": {"detailed": True, "enhanced": True, "every_s": 10}},
    "beside": {"weight": 9, "variants": {"candidate": {"model": {"id": "org/new"}, "weight": 1}}},
    "shadowed": {"shadow": {"env": {"QUANTIZE": "int8"}, "percent": 25}},
}
