"""Facts for plans: of the image in ECR, the model's files, and quotas; all calls only read."""
