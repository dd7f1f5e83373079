"""Plans as documents of other tools: CloudFormation, Terraform."""
