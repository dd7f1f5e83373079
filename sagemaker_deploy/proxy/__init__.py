"""A port that speaks OpenAI's, Anthropic's and TGI's APIs in front of SageMaker endpoints."""
