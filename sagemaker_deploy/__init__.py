"""From a folder to a SageMaker endpoint: plan, deploy, call, scale; and an endpoint on localhost.

This is the laptop's and CI's side. It never imports `container`: it talks to the container over
HTTP and starts it as a process or from an image.
"""
