"""Deploys models to SageMaker: plan, deploy, invoke, scale; and runs an endpoint on localhost.

Runs on a laptop or in CI. It never imports `container`: it talks to the container over HTTP and
starts it as a process or from an image.
"""
