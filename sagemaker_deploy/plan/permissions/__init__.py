"""IAM policies with the least permissions that a deployment needs."""
