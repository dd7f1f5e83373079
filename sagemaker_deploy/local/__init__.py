"""A SageMaker endpoint on localhost: the runtime API and the part of the control plane it needs.

`server` composes the parts: `control` manages models, endpoint configs and endpoints, `fleet` the
container processes behind them, `runtime` serves the invocations.
"""
